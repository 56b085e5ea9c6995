package routes

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Failure is a route that could not be had, or not be removed.
type Failure struct {
	Route Route
	Err   error // the operation, the route, the cause, and the remedy where it is known
}

// Error is that of a Set which could not do everything.
type Error struct {
	Failures []Failure // by Dst, one or more
}

// failed returns an *Error, or nil if nothing failed.
func failed(failures []Failure) error {
	if len(failures) == 0 {
		return nil
	}
	slices.SortStableFunc(failures, func(a, b Failure) int { return a.Route.Dst.Compare(b.Route.Dst) })
	return &Error{failures}
}

// Error names the first failure and the number of the others.
func (e *Error) Error() string {
	s := e.Failures[0].Err.Error()
	if n := len(e.Failures) - 1; n > 0 {
		s += fmt.Sprintf(" (and %d more routes)", n)
	}
	return s
}

// Unwrap returns the errors of all failures.
func (e *Error) Unwrap() []error {
	errs := make([]error, len(e.Failures))
	for i, f := range e.Failures {
		errs[i] = f.Err
	}
	return errs
}

// explain says why the route could not be put in, and what to do about it. The
// kernel's errno alone does not: for IPv4 a gateway through a device that is gone
// is ENETUNREACH.
func (t *Table) explain(r Route, err error) error {
	dev := t.device(r.Dev)
	remedy := ""
	switch {
	case r.Dev > 0 && dev.gone:
		remedy = "; the device is gone, the route follows when another is wanted"
	case r.Dev > 0 && dev.down:
		remedy = fmt.Sprintf("; %[1]s is down, the route follows when it is up: ip link set %[1]s up", dev.name)
	case (errors.Is(err, unix.ENETUNREACH) || errors.Is(err, unix.EHOSTUNREACH)) && r.Via.IsValid():
		remedy = fmt.Sprintf("; no network of %s has the peer's address %s in it: give both nodes addresses of one network, or reach the peer through a tunnel", dev.name, r.Via)
	case errors.Is(err, unix.EACCES) && r.Dst.Addr().Is6():
		remedy = fmt.Sprintf("; IPv6 is turned off here: set net.ipv6.conf.%s.disable_ipv6=0", dev.name)
	case errors.Is(err, unix.EPERM):
		remedy = "; run as root, or with CAP_NET_ADMIN"
	}
	return fmt.Errorf("set route %s: %w%s", t.words(r), err, remedy)
}

// words writes the route with the name of its device.
func (t *Table) words(r Route) string {
	return strings.Replace(r.String(), fmt.Sprintf(" dev %d", r.Dev), " dev "+t.device(r.Dev).name, 1)
}

// device is what messages say of a device.
type device struct {
	name       string // its index if it is gone
	gone, down bool
}

func (t *Table) device(index int) device {
	d, ok := t.devices[index]
	if !ok {
		if link, err := t.nl.LinkByIndex(index); err == nil {
			d = device{name: link.Attrs().Name, down: link.Attrs().Flags&net.FlagUp == 0}
		} else {
			d = device{name: strconv.Itoa(index), gone: errors.As(err, &netlink.LinkNotFoundError{})}
		}
		t.devices[index] = d
	}
	return d
}
