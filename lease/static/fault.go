package static

import (
	"cmp"
	"fmt"
	"slices"
)

// Error reports why a lease file is refused.
type Error struct {
	Path   string
	Faults []Fault // all faults, in the order of the text; never empty
}

// Fault is one fault in a lease file.
type Fault struct {
	Line   int // from 1; 0 if the file as a whole is meant
	Column int // from 1, in bytes; 0 if the line is enough
	Text   string
}

// Error describes the first fault, which may have caused the others, and how many
// more there are.
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
