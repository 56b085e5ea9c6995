package static

import (
	"cmp"
	"fmt"
	"slices"
)

// Error says why a lease file is refused.
type Error struct {
	Path   string
	Faults []Fault // all that is wrong, in the order of the text; never empty
}

// Fault is one thing that is wrong with a lease file.
type Fault struct {
	Line   int // from 1; 0 if the file as a whole is meant
	Column int // from 1, in bytes; 0 where the line is enough
	Text   string
}

// Error names the first fault, from which the others may follow, and how many more
// there are.
func (e *Error) Error() string {
	f := e.Faults[0]
	where := e.Path
	if f.Line > 0 {
		where = fmt.Sprintf("%s:%d", where, f.Line)
	}
	if f.Column > 0 {
		where = fmt.Sprintf("%s:%d", where, f.Column)
	}
	if more := len(e.Faults) - 1; more > 0 {
		return fmt.Sprintf("lease file %s: %s (and %d more)", where, f.Text, more)
	}
	return fmt.Sprintf("lease file %s: %s", where, f.Text)
}

func newError(path string, faults ...Fault) *Error {
	slices.SortStableFunc(faults, func(a, b Fault) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
	return &Error{path, faults}
}
