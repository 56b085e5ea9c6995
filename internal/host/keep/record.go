package keep

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/atomicfile"
)

// record is the file that lists the objects added to this host that cannot be
// recognized as ours by their form. It must lie in a directory that is cleared
// at boot, since routes do not survive a reboot either. Its lines are
//
//	network 10.5.0.0/16 /24               a network, and the length of its subnets
//	10.5.2.0/24 via 192.0.2.2 dev eth0    a plain route
//	blackhole 10.5.1.0/24                 a blackhole route
//
// A line is written before the object that it describes is created, so there
// may be more lines than routes. Invalid lines are ignored.
type record struct {
	path     string
	networks []network
	routes   map[Route]bool
}

// spare is how many lines in excess of the routes are tolerated before the file
// is rewritten.
const spare = 256

// maxRecord bounds the size of the file in bytes: 10,000 routes take about 1 MB.
const maxRecord = 16 << 20

// openRecord reads the file at path, which may not exist. If path is empty,
// nothing is read or written.
func openRecord(path string) (*record, error) {
	r := &record{path: path, routes: make(map[Route]bool)}
	if path == "" {
		return r, nil
	}
	text, err := atomicfile.Read(path, unix.O_NOFOLLOW, maxRecord)
	if errors.Is(err, fs.ErrNotExist) {
		return r, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read record of routes: %w", err)
	}
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSuffix(line, "\n")
		if n, ok := parseNetwork(line); ok {
			r.networks = append(r.networks, n)
		} else if route, err := parseRoute(line); err == nil && route.outlives() {
			r.routes[route] = true
		}
	}
	return r, nil
}

func (n network) String() string { return fmt.Sprintf("network %s /%d", n.Prefix, n.subnetBits) }

func parseNetwork(line string) (n network, ok bool) {
	f := strings.Fields(line)
	if len(f) != 3 || f[0] != "network" {
		return n, false
	}
	var errs [2]error
	n.Prefix, errs[0] = netip.ParsePrefix(f[1])
	n.subnetBits, errs[1] = strconv.Atoi(strings.TrimPrefix(f[2], "/"))
	return n, errors.Join(errs[:]...) == nil && n.subnetBits >= n.Bits() && n.subnetBits <= n.Addr().BitLen()
}

// has reports whether an earlier run made the route.
func (r *record) has(route Route) bool { return r.routes[route] }

// add writes the networks, and those of the routes that outlive a process, to
// the file before they are installed.
func (r *record) add(networks []network, routes []Route) error {
	if r.path == "" {
		return nil
	}
	var added []string
	var fresh []Route
	for _, n := range networks {
		if !slices.Contains(r.networks, n) {
			added = append(added, n.String())
		}
	}
	for _, route := range routes {
		if route.outlives() && !r.routes[route] {
			added, fresh = append(added, route.String()), append(fresh, route)
		}
	}
	if err := r.append(added); err != nil {
		return fmt.Errorf("write record of routes: %w", err)
	}
	for _, n := range networks {
		if !slices.Contains(r.networks, n) {
			r.networks = append(r.networks, n)
		}
	}
	for _, route := range fresh {
		r.routes[route] = true
	}
	return nil
}

func (r *record) append(lines []string) error {
	if len(lines) == 0 {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(r.path), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(r.path, os.O_WRONLY|os.O_CREATE|os.O_APPEND|unix.O_NOFOLLOW, 0o644)
	if err != nil {
		return err
	}
	// The leading newline ends a partial line that a killed writer may have
	// left.
	_, err = f.WriteString("\n" + strings.Join(lines, "\n") + "\n")
	return errors.Join(err, f.Close())
}

// trim removes all but these networks and routes from the record if the excess
// is large. All others must be gone from the kernel. If nothing is left, the
// file is removed.
func (r *record) trim(networks []network, routes []Route) error {
	stays := make(map[Route]bool)
	for _, route := range routes {
		if route.outlives() {
			stays[route] = true
		}
	}
	if r.path == "" || len(r.networks) <= len(networks) && len(r.routes) <= len(stays)+spare {
		return nil
	}
	var text bytes.Buffer
	for _, n := range networks {
		text.WriteString(n.String() + "\n")
	}
	for _, route := range routes {
		if route.outlives() {
			text.WriteString(route.String() + "\n")
		}
	}
	var err error
	if text.Len() > 0 {
		err = atomicfile.Write(r.path, text.Bytes(), 0o644)
	} else if err = os.Remove(r.path); errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	if err != nil {
		return fmt.Errorf("write record of routes: %w", err)
	}
	r.networks, r.routes = slices.Clone(networks), stays
	return nil
}

// recorded returns the networks to record: none if nothing in s outlives the
// process.
func (k *Keeper) recorded(s State) []network {
	if slices.ContainsFunc(s.Links, func(l Link) bool { return l.VXLAN != nil }) || slices.ContainsFunc(s.Routes, Route.outlives) {
		return currentNetworks(k.cfg)
	}
	return nil
}

// trimRecord drops from the record what the kernel no longer has. It drops
// networks of earlier runs if clean reports that nothing is left in them.
func (k *Keeper) trimRecord(s State, clean bool) error {
	networks := k.record.networks
	if clean && k.retired {
		networks = k.recorded(s)
		k.networks = currentNetworks(k.cfg)
	}
	all := s.Routes
	for key, h := range k.have.routes {
		if _, wanted := k.want.routes[key]; !wanted { // it could not be deleted
			all = append(slices.Clip(all), k.named(h.Route))
		}
	}
	return k.record.trim(networks, all)
}
