package cli

import (
	"errors"
	"strings"
	"testing"
)

// A secret whose name was forgotten is not repeated on a terminal, or in the log of a script.
func TestAPairThatIsNoneIsNotShown(t *testing.T) {
	unset := func(string) (string, bool) { return "", false }
	for _, said := range []string{"hush", "=hush"} {
		_, err := pairs("--env", []string{"A=b", said}, unset)
		if !errors.Is(err, errUsage) || strings.Contains(err.Error(), "hush") || !strings.Contains(err.Error(), "number 2") {
			t.Errorf("%q: %v; want a usage error that says which, and not what", said, err)
		}
	}
}
