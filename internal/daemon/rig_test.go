package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twillnet/twill/internal/backend"
	"github.com/twillnet/twill/internal/backend/dataplane"
	"github.com/twillnet/twill/internal/host/underlay"
	"github.com/twillnet/twill/internal/lab/testkit"
	"github.com/twillnet/twill/internal/logging"
	"github.com/twillnet/twill/internal/status"
	"github.com/twillnet/twill/lease"
	"github.com/twillnet/twill/metrics"
)

// twoNodes is a lease file for the host of the tests, 192.0.2.1, and a peer.
const twoNodes = `{
  "Network": "10.5.0.0/16",
  "Backend": {"Type": "udp"},
  "Leases": [
    {"Subnet": "10.5.1.0/24", "PublicIP": "192.0.2.1"},
    {"Subnet": "10.5.2.0/24", "PublicIP": "192.0.2.2"}
  ]
}`

var eth0 = underlay.Interface{
	Name: "eth0", Index: 2, MTU: 1500,
	IPv4: netip.MustParseAddr("192.0.2.1"), PublicIP: netip.MustParseAddr("192.0.2.1"),
	Why: "chosen by the test",
}

// rig is a daemon over a real lease file, with an interface and a data plane
// that are made up.
type rig struct {
	*daemon
	dp    *fakeDataplane
	log   testkit.Log
	wires wires
	stops context.CancelFunc
	ended chan error
}

func newRig(t *testing.T) *rig {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "twilld") // short enough for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	// No rules are made on the machine that tests, nor removed: without PATH
	// there are no programs for it.
	t.Setenv("PATH", "")
	o := defaults()
	o.leaseFile = filepath.Join(dir, "leases.json")
	o.subnetFile = filepath.Join(dir, "run", "subnet.env")
	o.controlSocket = filepath.Join(dir, "twilld.sock")
	o.forwardRules = false // or else the log would complain of that
	h := &rig{
		wires: wires{link: eth0, changes: make(chan struct{}, 1)},
		dp:    &fakeDataplane{fail: make(chan error, 1), panics: make(chan struct{})},
		ended: make(chan error, 1),
	}
	h.daemon = &daemon{
		options: o,
		log:     logging.New(&h.log, logging.Text, slog.LevelDebug),
		level:   logging.NewLevel(slog.LevelDebug),
		state:   newState(o.source(), "the source of leases"),
		choose:  h.wires.choose,
		stay:    h.wires.stay,
		links:   func() (<-chan struct{}, func(), error) { return h.wires.changes, func() {}, nil },
		open:    h.dp.open,
		probes: backend.Probes{
			VXLAN: func(int) error { return errors.New("no VXLAN in a test") },
			UDP:   func() error { return nil },
		},
		addrs:    func() ([]netip.Addr, error) { return []netip.Addr{eth0.IPv4}, nil },
		gateways: func() ([]netip.Addr, error) { return nil, nil },
		identity: func(underlay.Interface) string { return "" },
		rest:     func(context.Context, time.Duration) {},
		macs:     func(backend.Settings, backend.Choice) (dataplane.MACs, error) { return dataplane.MACs{}, nil },
	}
	h.write(t, twoNodes)
	return h
}

// write replaces the lease file.
func (h *rig) write(t *testing.T, text string) {
	t.Helper()
	temp := h.options.leaseFile + ".new"
	if err := errors.Join(os.WriteFile(temp, []byte(text), 0o644), os.Rename(temp, h.options.leaseFile)); err != nil {
		t.Fatal(err)
	}
}

// launch starts the daemon; the test stops it when it ends.
func (h *rig) launch(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	h.stops = cancel
	done := make(chan struct{})
	go func() {
		defer close(done)
		h.ended <- h.runUntilSignal(ctx)
	}()
	t.Cleanup(func() { cancel(); <-done })
}

// start launches the daemon and waits until it is ready.
func (h *rig) start(t *testing.T) {
	t.Helper()
	h.launch(t)
	h.eventually(t, "the daemon is ready", func() bool { return h.state.waiting() == "" })
	h.eventually(t, "the data plane runs", func() bool { return h.dp.calls() == "" || strings.Contains(h.dp.calls(), ", run") })
}

func (h *rig) stop(t *testing.T) error {
	t.Helper()
	h.stops()
	return h.wait(t)
}

// wait returns what the daemon ended with.
func (h *rig) wait(t *testing.T) error {
	t.Helper()
	return testkit.Receive(t, "the daemon ends", h.ended, func() string { return "log:\n" + h.logged() })
}

func (h *rig) eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	testkit.Eventually(t, what, holds, func() string { return "log:\n" + h.logged() })
}

func (h *rig) logged() string { return h.log.String() }

func (h *rig) status(t *testing.T) *status.Document {
	t.Helper()
	d, err := status.Fetch(t.Context(), h.options.controlSocket)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func (h *rig) get(t *testing.T, path string) (code int, body string) {
	t.Helper()
	res, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d%s", h.options.healthzPort, path))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(b)
}

// wires are the interfaces of a host. There is one at most that will do.
type wires struct {
	changes chan struct{}

	mu   sync.Mutex
	link underlay.Interface
	err  error // what is wrong with it
	seen int   // how often it was looked at, once each time that the plan is applied
}

// become changes the interface and reports it.
func (w *wires) become(link underlay.Interface, err error) {
	w.mu.Lock()
	w.link, w.err = link, err
	w.mu.Unlock()
	w.changes <- struct{}{}
}

func (w *wires) choose(underlay.Options) (underlay.Interface, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.link, w.err
}

func (w *wires) stay(was underlay.Interface, _ underlay.Options) (underlay.Interface, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.seen++
	switch {
	case w.err != nil:
		return underlay.Interface{}, w.err
	case w.link.IPv4 != was.IPv4 || w.link.Index != was.Index:
		return underlay.Interface{}, fmt.Errorf("interface %s no longer has the address %s", was.Name, was.IPv4)
	}
	return w.link, nil
}

// fakeDataplane writes down what it is asked to do.
type fakeDataplane struct {
	fail   chan error    // Run returns what it gives
	panics chan struct{} // Run panics when it is closed
	tries  atomic.Int32  // how often it was to be opened

	mu     sync.Mutex
	log    []string
	leases []lease.Lease
	node   node  // that it was opened with last
	broken error // open fails with it
	again  bool  // SetLeases asks for the leases again
}

func (f *fakeDataplane) note(format string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.log = append(f.log, fmt.Sprintf(format, args...))
}

func (f *fakeDataplane) calls() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return strings.Join(f.log, ", ")
}

func (f *fakeDataplane) open(n node) (dataPlane, error) {
	f.tries.Add(1)
	f.mu.Lock()
	f.node = n
	err := f.broken
	f.mu.Unlock()
	if err != nil {
		return nil, err
	}
	f.note("open")
	return f, nil
}

// breaks makes open fail with err, or work again if there is none.
func (f *fakeDataplane) breaks(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.broken = err
}

func (f *fakeDataplane) SetLeases(leases []lease.Lease) (again bool) {
	var keys []string
	for _, l := range leases {
		keys = append(keys, string(l.Key()))
	}
	f.note("leases %s", strings.Join(keys, " "))
	f.mu.Lock()
	defer f.mu.Unlock()
	f.leases = leases
	return f.again
}

// current returns the leases that it has.
func (f *fakeDataplane) current() []lease.Lease {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.leases)
}

func (f *fakeDataplane) Run(ctx context.Context) error {
	f.note("run")
	defer f.note("run ended")
	select {
	case <-ctx.Done():
		return nil
	case err := <-f.fail:
		return err
	case <-f.panics:
		panic("index out of range")
	}
}

func (f *fakeDataplane) Close() error {
	f.note("close")
	return nil
}

func (f *fakeDataplane) Descriptors() map[string]int { return nil }

func (f *fakeDataplane) Failed() backend.Failed { return nil }

func (f *fakeDataplane) SetIdle([]status.Peer) {}

func (f *fakeDataplane) MTU() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.node.link.MTU - 28
}

func (f *fakeDataplane) Counters() []*metrics.Shard { return []*metrics.Shard{new(metrics.Shard)} }

func (f *fakeDataplane) Traffic() []metrics.BackendTraffic { return nil }

func (f *fakeDataplane) Status() status.Dataplane {
	f.mu.Lock()
	defer f.mu.Unlock()
	d := status.Dataplane{Devices: []status.Device{{Name: "flannel0", Kind: status.KindPlain}}}
	for _, l := range f.leases {
		if l.PublicIP != eth0.PublicIP {
			d.Peers = append(d.Peers, status.Peer{PublicIP: l.PublicIP})
		}
	}
	return d
}

// manager is a service manager that listens on NOTIFY_SOCKET.
type manager struct {
	path string
	conn *net.UnixConn
}

func listenForNotify(t *testing.T) manager {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return manager{path, c}
}

// next returns the next state that it received.
func (m manager) next(t *testing.T) string {
	t.Helper()
	m.conn.SetReadDeadline(time.Now().Add(testkit.Patience))
	b := make([]byte, 100)
	n, err := m.conn.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	return string(b[:n])
}

// usedPort returns a port of 127.0.0.1 that is taken until the test ends.
func usedPort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l.Addr().(*net.TCPAddr).Port
}
