package daemon

import (
	"errors"
	"fmt"

	"github.com/twillnet/twill/internal/spelling"
)

// usageError reports an invalid command line or environment. It results in exit
// code 2.
type usageError struct{ msg string }

func (e *usageError) Error() string { return e.msg }

func usagef(format string, args ...any) error {
	return &usageError{fmt.Sprintf(format, args...)}
}

// ExitCode returns the exit code for the error of Run: 0 for nil, 2 for an
// invalid command line or environment, 1 for any other error.
func ExitCode(err error) int {
	var usage *usageError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &usage):
		return 2
	default:
		return 1
	}
}

// nearest returns the name that is spelled most like the given one, or "" if
// none is close enough.
func nearest(given string, names []string) string {
	best, distance := spelling.Nearest(given, names)
	if distance > 1+len(given)/4 {
		return ""
	}
	return best
}
