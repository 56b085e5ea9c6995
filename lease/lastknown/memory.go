package lastknown

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/twillnet/twill/internal/atomicfile"
	"github.com/twillnet/twill/internal/logging"
	"github.com/twillnet/twill/lease"
)

// memory is the last known state of a node, and the JSON of its file. It is
// replaced, never modified.
type memory struct {
	At     time.Time
	Config *lease.Config
	Own    *lease.Lease
	Leases []lease.Lease // in force, including this node's own

	// The addresses with which users annotated the node.
	NodeIPv4, NodeIPv6 netip.Addr
}

// own returns the lease of the node that a describes, with a as its attributes,
// or nil if no lease is known that is still valid at now.
func (m memory) own(a lease.Attrs, now time.Time) *lease.Lease {
	o := m.Own
	switch {
	case o == nil || m.Config == nil,
		!o.Expiration.IsZero() && !now.Before(o.Expiration),
		o.PublicIP != a.PublicIP || o.PublicIPv6 != a.PublicIPv6:
		return nil
	}
	l := *o
	l.Attrs = a
	return &l
}

// maxFile bounds what is read: 10,000 leases take about 3 MB.
const maxFile = 64 << 20

// read returns the memory in a file, or an empty one if there is none.
func read(path string) (m memory, err error) {
	text, err := atomicfile.Read(path, 0, maxFile)
	if errors.Is(err, fs.ErrNotExist) {
		return m, nil
	}
	if err != nil {
		return m, fmt.Errorf("read last known leases: %w", err)
	}
	if err := json.Unmarshal(text, &m); err != nil {
		return memory{}, fmt.Errorf("read last known leases: decode %s: %w", path, err)
	}
	return m, nil
}

// write replaces the file.
func (m memory) write(path string) error {
	text, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("write last known leases: %w", err)
	}
	err = os.MkdirAll(filepath.Dir(path), 0o755) // subnet.env, in the same directory, is written later
	if err == nil {
		err = atomicfile.Write(path, text, 0o600)
	}
	if err != nil {
		return fmt.Errorf("write last known leases: %w", err)
	}
	return nil
}

// Remove removes the file and the temporary file of a killed writer. A missing
// file is not an error.
func Remove(path string) error {
	for _, p := range []string{path, atomicfile.Temp(path)} {
		if err := os.Remove(p); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove last known leases: %w", err)
		}
	}
	return nil
}

// writer maintains the file during one Watch.
type writer struct {
	*Store
	set    lease.Set
	timer  *time.Timer // runs while the file is older than set; otherwise nil
	last   time.Time
	failed bool
}

// apply applies an update, and writes the file at once or soon.
func (w *writer) apply(u lease.Update) {
	if u.Config != nil {
		w.mu.Lock()
		w.known.Config = u.Config
		w.mu.Unlock()
	}
	if !w.set.Apply(u) && u.Config == nil || w.timer != nil {
		return
	}
	if wait := writeEvery - time.Since(w.last); wait > 0 {
		w.timer = time.NewTimer(wait)
		return
	}
	w.write()
}

// due returns a channel that receives when the file has to be written.
func (w *writer) due() <-chan time.Time {
	if w.timer == nil {
		return nil
	}
	return w.timer.C
}

func (w *writer) write() {
	if w.timer != nil {
		w.timer.Stop()
		w.timer = nil
	}
	w.last = time.Now()
	w.mu.Lock()
	w.known.At, w.known.Leases = w.last.Round(0), w.set.Leases()
	m := w.known
	w.mu.Unlock()
	err := m.write(w.o.Path)
	if err != nil && !w.failed {
		w.o.Logger.Warn("cannot save last known leases, a restart while the lease store does not answer would wait for it", logging.KeyError, err)
	}
	w.failed = err != nil
}

// end writes changes that are not written yet.
func (w *writer) end() {
	if w.timer != nil {
		w.write()
	}
}
