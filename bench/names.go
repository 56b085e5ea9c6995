package bench

import (
	"fmt"
	"slices"
	"strings"
)

// AllPaths lists the names of all paths as ParsePaths reads them.
func AllPaths() string { return list(Paths, Path.name) }

// AllLoads lists the names of all loads as ParseLoads reads them.
func AllLoads() string { return list(Loads, Load.name) }

// AllWires lists the names of all wires as ParseWires reads them.
func AllWires() string { return list(Wires, Wire.name) }

// ParsePaths finds paths by a comma-separated list of names.
func ParsePaths(names string) ([]Path, error) { return parse("path", names, Paths, Path.name) }

// ParseLoads finds loads by a comma-separated list of names.
func ParseLoads(names string) ([]Load, error) { return parse("load", names, Loads, Load.name) }

// ParseWires finds wires by a comma-separated list of names.
func ParseWires(names string) ([]Wire, error) { return parse("wire", names, Wires, Wire.name) }

func (p Path) name() string { return p.Name }
func (l Load) name() string { return l.Name }
func (w Wire) name() string { return w.Name }

func list[T any](all []T, name func(T) string) string {
	var names []string
	for _, item := range all {
		names = append(names, name(item))
	}
	return strings.Join(names, ",")
}

// parse finds items by their names and returns them in the order of the names. A
// duplicate name is an error, since its runs could not be distinguished.
func parse[T any](kind, names string, all []T, name func(T) string) ([]T, error) {
	var found []T
	for n := range strings.SplitSeq(names, ",") {
		item, ok := find(all, n, name)
		if !ok {
			return nil, fmt.Errorf("unknown %s %q; want one of %s", kind, n, list(all, name))
		}
		if _, twice := find(found, n, name); twice {
			return nil, fmt.Errorf("duplicate %s %s", kind, n)
		}
		found = append(found, item)
	}
	return found, nil
}

func find[T any](all []T, n string, name func(T) string) (item T, ok bool) {
	i := slices.IndexFunc(all, func(item T) bool { return name(item) == n })
	if i < 0 {
		return item, false
	}
	return all[i], true
}
