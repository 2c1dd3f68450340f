package docker

import (
	"testing"

	"github.com/sandgate/sandgate/drivers/container"
	"github.com/sandgate/sandgate/drivers/container/enginetest"
	"github.com/sandgate/sandgate/shared/driver"
)

func opener(dir, socket string) (driver.Driver, error) {
	return Open(Config{Config: container.Config{Dir: dir}, Host: "unix://" + socket})
}

func TestEachCallFails(t *testing.T) {
	enginetest.Failures(t, enginetest.Use(t, enginetest.Docker), opener)
}

func TestObstacles(t *testing.T) {
	enginetest.Obstacles(t, enginetest.Use(t, enginetest.Docker), opener)
}

func TestMeddling(t *testing.T) {
	enginetest.Meddling(t, enginetest.Use(t, enginetest.Docker), opener)
}

func TestImagesAreFetched(t *testing.T) {
	enginetest.Images(t, enginetest.Use(t, enginetest.Docker), func(dir, socket, policy string) (driver.Driver, error) {
		return Open(Config{Config: container.Config{Dir: dir, ImagePolicy: policy}, Host: "unix://" + socket})
	})
}

func TestHealthChecksSayWhatIsReady(t *testing.T) {
	enginetest.Health(t, enginetest.Use(t, enginetest.Docker), opener)
}
