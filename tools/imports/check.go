package main

import (
	"fmt"
	"slices"
)

// find returns the index of the row and the pattern that a package belongs to:
// the one that names it, or the longest that covers it.
func (t table) find(path string) (int, pattern, bool) {
	at, best := 0, pattern("")
	for i, r := range t.rows {
		for _, p := range r.patterns {
			if string(p) == path {
				return i, p, true
			}
			if p.match(path) && len(p) > len(best) {
				at, best = i, p
			}
		}
	}
	return at, best, best != ""
}

// check returns an error for each package without a row, pattern without a
// package, and import that the table does not allow.
func (t table) check(pkgs []pkg) []error {
	var broken []error
	for _, r := range t.rows {
		for _, p := range r.patterns {
			if !slices.ContainsFunc(pkgs, func(k pkg) bool { return p.match(k.path) }) {
				broken = append(broken, fmt.Errorf("the table names %s, which does not exist", p))
			}
		}
	}
	for _, k := range pkgs {
		if _, _, ok := t.find(k.path); !ok {
			broken = append(broken, fmt.Errorf("%s is missing from the table of packages", k.path))
		}
	}
	if len(broken) > 0 {
		return broken
	}
	for _, k := range pkgs {
		for _, to := range k.imports {
			if err := t.allows(k.path, to); err != nil {
				broken = append(broken, err)
			}
		}
	}
	return broken
}

// allows returns why the package from may not import the package to, or nil.
func (t table) allows(from, to string) error {
	i, p, _ := t.find(from)
	j, q, _ := t.find(to)
	if i == j && p == q {
		return nil // a package and those below it, as one row of the table
	}
	switch above, below := t.rows[i].rules, t.rows[j].rules; {
	case i >= j:
		return fmt.Errorf("%s imports %s, which does not stand below it in the table", from, to)
	case above.nothing:
		return fmt.Errorf("%s imports %s, and may import nothing", from, to)
	case matchAny(above.noneOf, to):
		return fmt.Errorf("%s imports %s, which its rule forbids", from, to)
	case below.onlyBy != nil && !matchAny(below.onlyBy, from):
		return fmt.Errorf("%s imports %s, which is not for it", from, to)
	}
	return nil
}
