package daemon

import (
	"errors"
	"fmt"
	"slices"
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
	best, most := "", 1+len(given)/4
	for _, name := range names {
		if d := distance(given, name); d <= most {
			best, most = name, d-1
		}
	}
	return best
}

// distance is the Levenshtein distance: how many letters must be inserted,
// deleted or replaced to turn a into b.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = slices.Min([]int{cost, row[j] + 1, row[j+1] + 1})
		}
	}
	return row[len(b)]
}
