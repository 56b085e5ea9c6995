package backend

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/twillnet/twill/internal/host/routes"
)

// memory is a file with the plain routes that this host has been given. They look
// like anybody's: without it, a run could not tell those of the run before from
// an operator's. It lies where files are gone after a reboot, as routes are.
//
// A line is a route as ip-route(8) writes it, "10.5.2.0/24 via 192.0.2.2 dev
// eth0". It stands there before the route is made, so that there may be more
// lines than routes.
type memory struct {
	path  string
	lines map[string]bool
	known map[routes.Route]bool // those of lines that remember has seen
}

// spare is how many lines more than there are routes are put up with before the
// file is written anew.
const spare = 256

// openMemory reads the file at path. That there is none is no error; what it
// cannot read it passes over.
func openMemory(path string) (*memory, error) {
	m := &memory{path: path, lines: make(map[string]bool), known: make(map[routes.Route]bool)}
	text, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read which routes an earlier run has made: %w", err)
	}
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSuffix(line, "\n")
		if _, _, err := parseLine(line); err == nil {
			m.lines[line] = true
		}
	}
	return m, nil
}

// lineOf returns the line of r, a route over the interface dev.
func lineOf(r routes.Route, dev string) string {
	return fmt.Sprintf("%s via %s dev %s", r.Dst, r.Via, dev)
}

// parseLine returns the route of a line, without the number of its interface, and
// the name of that.
func parseLine(line string) (r routes.Route, dev string, err error) {
	f := strings.Fields(line)
	if len(f) != 5 || f[1] != "via" || f[3] != "dev" {
		return r, "", fmt.Errorf("%q is not a route", line)
	}
	var errs [2]error
	r.Dst, errs[0] = netip.ParsePrefix(f[0])
	r.Via, errs[1] = netip.ParseAddr(f[2])
	return r, f[4], errors.Join(errs[:]...)
}

// has says whether the route r over dev was made by an earlier run.
func (m *memory) has(r routes.Route, dev string) bool { return m.lines[lineOf(r, dev)] }

// remember writes down the plain routes over dev in all before they are made.
func (m *memory) remember(all []routes.Route, dev string) error {
	var added []string
	var seen []routes.Route
	for _, r := range all {
		if m.known[r] {
			continue
		}
		seen = append(seen, r)
		if line := lineOf(r, dev); !m.lines[line] {
			added = append(added, line)
		}
	}
	if err := m.write(added); err != nil {
		return err
	}
	for _, r := range seen {
		m.known[r] = true
	}
	return nil
}

// write appends lines to the file.
func (m *memory) write(added []string) error {
	if len(added) == 0 {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(m.path), 0o755); err != nil {
		return fmt.Errorf("write down routes: %w", err)
	}
	f, err := os.OpenFile(m.path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return fmt.Errorf("write down routes: %w", err)
	}
	// In front too, in case a killed writer has left half a line.
	_, err = f.WriteString("\n" + strings.Join(added, "\n") + "\n")
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("write down routes: %w", err)
	}
	for _, line := range added {
		m.lines[line] = true
	}
	return nil
}

// keep forgets all but the routes in all, when there is much to forget. All else
// is gone from the kernel.
func (m *memory) keep(all []routes.Route, dev string) error {
	if len(m.lines) <= len(all)+spare {
		return nil
	}
	lines, known := make(map[string]bool, len(all)), make(map[routes.Route]bool, len(all))
	var text bytes.Buffer
	for _, r := range all {
		line := lineOf(r, dev)
		lines[line], known[r] = true, true
		text.WriteString(line + "\n")
	}
	temp := m.path + ".new"
	err := os.WriteFile(temp, text.Bytes(), 0o644)
	if err == nil {
		err = os.Rename(temp, m.path)
	}
	if err != nil {
		return fmt.Errorf("write down routes: %w", errors.Join(err, os.Remove(temp)))
	}
	m.lines, m.known = lines, known
	return nil
}

// RemoveRoutes removes the plain routes that earlier runs have written down in
// the file at path, those that are still as they were, and the file. It returns
// the routes that it has removed, as text. That there is no file is no error.
func RemoveRoutes(path string, log *slog.Logger) (removed []string, err error) {
	m, err := openMemory(path)
	if err != nil {
		return nil, err
	}
	left := make(map[routes.Route]string)
	for line := range m.lines {
		r, dev, _ := parseLine(line) // openMemory has parsed it
		if i, err := net.InterfaceByName(dev); err == nil {
			r.Dev = i.Index
			left[r] = line
		}
	}
	anywhere := []netip.Prefix{netip.PrefixFrom(netip.IPv4Unspecified(), 0), netip.PrefixFrom(netip.IPv6Unspecified(), 0)}
	t, err := routes.Open(routes.Config{Networks: anywhere, Logger: log, Ours: func(r routes.Route) bool {
		line, ok := left[r]
		if ok {
			removed = append(removed, line)
		}
		return ok
	}})
	if err != nil {
		return nil, err
	}
	if err := t.Close(true); err != nil {
		return nil, err
	}
	slices.Sort(removed)
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return removed, fmt.Errorf("remove the list of routes: %w", err)
	}
	return removed, nil
}
