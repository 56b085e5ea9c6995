//go:build nobpf

package kernelpath

import (
	"context"
	"errors"
	"net/netip"
)

// errNotBuilt reports that this build has no kernel path. What another build left can
// still be removed.
var errNotBuilt = errors.New("this program was built without BPF (nobpf)")

// Path does not exist in this build.
type Path struct{}

// SelfTest returns an error.
func SelfTest(context.Context) error { return errNotBuilt }

// Open returns an error.
func Open(Config) (*Path, error) { return nil, errNotBuilt }

// RemoveDead does nothing: without BPF it cannot determine whether a pinned program is
// attached.
func RemoveDead() error { return nil }

// Set does nothing.
func (*Path) Set([]netip.Prefix, []Peer) ([]netip.Addr, error) { return nil, nil }

// Traffic returns nothing.
func (*Path) Traffic() (map[netip.Addr]Traffic, error) { return nil, nil }

// How returns nothing.
func (*Path) How() string { return "" }

// Check does nothing.
func (*Path) Check() error { return nil }

// Close does nothing.
func (*Path) Close() error { return nil }
