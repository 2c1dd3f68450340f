package kubernetes

import (
	"os"
	"testing"

	"github.com/sandgate/sandgate/test/kubetest"
)

func TestMain(m *testing.M) { os.Exit(kubetest.Main(m)) }
