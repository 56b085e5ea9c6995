package daemon

import (
	"context"
	"errors"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/host/underlay"
	"github.com/twillnet/twill/internal/lab/testkit"
	"github.com/twillnet/twill/internal/status"
	"github.com/twillnet/twill/lease"
)

func TestStartNotifiesEveryWaiter(t *testing.T) {
	manager := listenForNotify(t)
	h := newRig(t)
	h.daemon.notifySocket = manager.path
	h.start(t)

	if got := manager.next(t); got != "READY=1\nSTATUS=ready" {
		t.Errorf("service manager received %q", got)
	}
	env, err := os.ReadFile(h.options.subnetFile)
	want := "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.1.1/24\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=false\n"
	if err != nil || string(env) != want {
		t.Errorf("subnet.env: %q, %v; want %q", env, err, want)
	}
	d := h.status(t)
	if d.Waiting != "" || d.Backend != "udp" || d.Lease.Subnet.String() != "10.5.1.0/24" || d.Underlay.Why != "chosen by the test" || d.Source.Leases != 2 {
		t.Errorf("status: %+v", d)
	}
	if err := h.stop(t); err != nil {
		t.Error(err)
	}
	if got := manager.next(t); got != "STOPPING=1" {
		t.Errorf("service manager received %q", got)
	}
}

func TestPeersAreKnownBeforeAnythingIsForwarded(t *testing.T) {
	h := newRig(t)
	h.start(t)
	h.stop(t)
	if got, want := h.dp.calls(), "open, leases 10.5.1.0-24 10.5.2.0-24, run, run ended, close"; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestNotReadyUntilTheDataPlaneIsUp(t *testing.T) {
	h := newRig(t)
	h.options.healthzIP, h.options.healthzPort = netip.MustParseAddr("127.0.0.1"), int(testkit.FreePort(t).Port())
	opening, proceed := make(chan struct{}), make(chan struct{})
	h.daemon.open = func(n node) (dataPlane, error) {
		close(opening)
		<-proceed
		return h.dp.open(n)
	}
	h.launch(t)
	<-opening
	if code, body := h.get(t, "/readyz"); code != http.StatusServiceUnavailable || body != "waiting for the data plane\n" {
		t.Errorf("/readyz before: %d %q", code, body)
	}
	if code, _ := h.get(t, "/healthz"); code != http.StatusOK {
		t.Errorf("/healthz before: %d", code)
	}
	if d := h.status(t); d.Waiting != "the data plane" || d.Dataplane != nil {
		t.Errorf("status before: %+v", d)
	}
	close(proceed)
	h.eventually(t, "/readyz says 200", func() bool { code, _ := h.get(t, "/readyz"); return code == http.StatusOK })
	if _, body := h.get(t, "/metrics"); !strings.Contains(body, "\ntwill_peers 1\n") || !strings.Contains(body, "\ntwill_leases 2\n") {
		t.Errorf("/metrics:\n%s", body)
	}
}

func TestSignalEndsTheDaemonAndRemovesWhatWasMade(t *testing.T) {
	h := newRig(t)
	h.start(t)
	if err := unix.Kill(os.Getpid(), unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := h.wait(t); err != nil {
		t.Errorf("after SIGTERM: %v", err)
	}
	if !strings.HasSuffix(h.dp.calls(), "run ended, close") {
		t.Errorf("data plane: %s", h.dp.calls())
	}
	if _, err := os.Stat(h.options.controlSocket); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("control socket: %v", err)
	}
	if _, err := os.Stat(h.options.subnetFile); err != nil {
		t.Errorf("subnet.env must stay: %v", err)
	}
}

func TestSignalWhileStartingIsNoError(t *testing.T) {
	h := newRig(t)
	ctx, cancel := context.WithCancel(t.Context())
	h.daemon.open = func(node) (dataPlane, error) {
		cancel()
		return nil, context.Cause(ctx)
	}
	if err := h.daemon.runUntilSignal(ctx); err != nil {
		t.Error(err)
	}
}

func TestFailureOfTheDataPlaneEndsTheDaemon(t *testing.T) {
	for _, tc := range []struct {
		name string
		fail func(*fakeDataplane)
		want string
	}{
		{"error", func(f *fakeDataplane) { f.fail <- errors.New("read flannel0: device deleted") }, "data plane: read flannel0: device deleted"},
		{"no error", func(f *fakeDataplane) { f.fail <- nil }, "data plane: stopped unexpectedly"},
		{"panic", func(f *fakeDataplane) { close(f.panics) }, "data plane: panic: index out of range"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h := newRig(t)
			h.start(t)
			tc.fail(h.dp)
			err := h.wait(t)
			if err == nil || err.Error() != tc.want || ExitCode(err) != 1 {
				t.Errorf("got %v (exit code %d), want %q", err, ExitCode(err), tc.want)
			}
			if !strings.HasSuffix(h.dp.calls(), "close") {
				t.Errorf("not closed: %s", h.dp.calls())
			}
		})
	}
}

func TestStartFailsWithNothingLeft(t *testing.T) {
	for _, tc := range []struct {
		name    string
		prepare func(t *testing.T, h *rig)
		want    []string // in the message
	}{
		{"no lease file", func(t *testing.T, h *rig) { os.Remove(h.options.leaseFile) },
			[]string{"leases.json", "no such file"}},
		{"broken lease file", func(t *testing.T, h *rig) { h.write(t, `{"Network": "10.5.0.0/33"}`) },
			[]string{"leases.json", "Network"}},
		{"unsupported backend", func(t *testing.T, h *rig) {
			h.write(t, strings.Replace(twoNodes, `"udp"`, `"ipsec"`, 1))
		}, []string{`backend type "ipsec" is not supported by twilld, only by flannel`, "set Backend.Type in the network config to one of alloc, auto"}},
		{"no interface of the name", func(t *testing.T, h *rig) {
			h.options.iface = stringList{"eth7"}
			h.daemon.choose = func(underlay.Options) (underlay.Interface, error) {
				return underlay.Interface{}, errors.New("choose interface: --iface=eth7: no such interface")
			}
		}, []string{"--iface=eth7"}},
		{"no lease for this node", func(t *testing.T, h *rig) {
			h.write(t, strings.Replace(twoNodes, "192.0.2.1", "192.0.2.9", 1))
		}, []string{"no lease for this node", "192.0.2.1"}},
		{"backend does not open", func(t *testing.T, h *rig) {
			h.dp.breaks(errors.New("open TUN device flannel0: EPERM"))
		}, []string{"open TUN device"}},
		{"subnet file cannot be written", func(t *testing.T, h *rig) { h.options.subnetFile = h.options.leaseFile + "/subnet.env" },
			[]string{"write subnet file"}},
		{"control socket cannot be made", func(t *testing.T, h *rig) { h.options.controlSocket = h.options.leaseFile },
			[]string{"not a socket"}},
		{"port in use", func(t *testing.T, h *rig) {
			h.options.healthzIP = netip.MustParseAddr("127.0.0.1")
			h.options.healthzPort = usedPort(t)
		}, []string{"--healthz-port"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h := newRig(t)
			tc.prepare(t, h)
			h.launch(t)
			err := h.wait(t)
			if ExitCode(err) != 1 {
				t.Fatalf("got %v, exit code %d", err, ExitCode(err))
			}
			for _, want := range tc.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q lacks %q", err, want)
				}
			}
			if calls := h.dp.calls(); calls != "" && !strings.HasSuffix(calls, "close") {
				t.Errorf("data plane left: %s", calls)
			}
			if fi, err := os.Lstat(h.options.controlSocket); err == nil && fi.Mode().Type() == os.ModeSocket {
				t.Error("the control socket is left")
			}
		})
	}
}

// A host may get its default route long after the daemon has started.
func TestDefaultRouteThatIsNotThereYetIsWaitedFor(t *testing.T) {
	h := newRig(t)
	h.options.healthzIP, h.options.healthzPort = netip.MustParseAddr("127.0.0.1"), int(testkit.FreePort(t).Port())
	none := &underlay.NoneError{Tried: errors.New("there is no default route"), Has: "eth0 (no address)"}
	h.wires.link, h.wires.err = underlay.Interface{}, none
	h.launch(t)
	h.eventually(t, "the status says what is waited for", func() bool {
		return strings.HasPrefix(h.state.waiting(), "an interface to the other nodes: choose interface: there is no default route;")
	})
	if code, _ := h.get(t, "/healthz"); code != http.StatusOK {
		t.Errorf("/healthz: %d", code)
	}
	if code, body := h.get(t, "/readyz"); code != http.StatusServiceUnavailable || !strings.Contains(body, "there is no default route") {
		t.Errorf("/readyz: %d %q", code, body)
	}
	h.wires.become(eth0, nil)
	h.eventually(t, "ready with the route", func() bool { return h.state.waiting() == "" })
	if n := strings.Count(h.logged(), "no interface to the other nodes yet"); n != 1 {
		t.Errorf("%d lines in\n%s", n, h.logged())
	}
}

func TestDaemonThatWaitsForAnInterfaceEndsAtASignal(t *testing.T) {
	h := newRig(t)
	h.wires.err = &underlay.NoneError{Tried: errors.New("there is no default route"), Has: "no interfaces"}
	h.launch(t)
	h.eventually(t, "it waits", func() bool { return strings.Contains(h.state.waiting(), "no default route") })
	if err := h.stop(t); err != nil {
		t.Error(err)
	}
}

func TestSecondDaemonDoesNotTouchTheFirst(t *testing.T) {
	first := newRig(t)
	first.start(t)
	second := newRig(t)
	second.options.controlSocket = first.options.controlSocket
	second.launch(t)
	if err := second.wait(t); err == nil || !strings.Contains(err.Error(), "another twilld is running") {
		t.Errorf("second: %v", err)
	}
	if d := first.status(t); d.Waiting != "" {
		t.Errorf("first: %+v", d)
	}
}

func TestIgnoredFlagsAreLoggedOnce(t *testing.T) {
	h := newRig(t)
	h.options.ignored = []ignoredFlag{{"--vmodule", "there are no levels"}}
	h.start(t)
	if n := strings.Count(h.logged(), `msg="setting ignored" setting=--vmodule why="there are no levels"`); n != 1 {
		t.Errorf("%d lines in\n%s", n, h.logged())
	}
}

func TestBrokenSubnetFileDoesNotStopTheStart(t *testing.T) {
	for what, put := range map[string]func(path string) error{
		"a wrong subnet":     func(path string) error { return os.WriteFile(path, []byte("FLANNEL_SUBNET=10.5.x.1/24\n"), 0o644) },
		"a pipe":             func(path string) error { return unix.Mkfifo(path, 0o644) },
		"more than a subnet": func(path string) error { return errors.Join(os.WriteFile(path, nil, 0o644), os.Truncate(path, 1<<40)) },
	} {
		h := newRig(t)
		testkit.Must(t, os.MkdirAll(filepath.Dir(h.options.subnetFile), 0o755), put(h.options.subnetFile))
		h.start(t)
		if !strings.Contains(h.logged(), `msg="cannot read subnet file"`) {
			t.Errorf("%s: log:\n%s", what, h.logged())
		}
		if env, err := lease.ReadSubnetEnv(h.options.subnetFile); err != nil || !env.Subnet.IsValid() {
			t.Errorf("%s: the file was not replaced: %+v, %v", what, env, err)
		}
	}
}

// In a network of both families the interface needs both addresses only if
// there is one that has them.
func TestInterfaceOfOneFamilyCarriesBoth(t *testing.T) {
	h := newRig(t)
	h.write(t, strings.Replace(twoNodes, `"Network"`, `"EnableIPv6": true, "IPv6Network": "fd00::/48", "Network"`, 1))
	h.daemon.choose = func(o underlay.Options) (underlay.Interface, error) {
		if o.NeedIPv6 {
			return underlay.Interface{}, errors.New("eth0 has no IPv6 address")
		}
		return eth0, nil
	}
	h.start(t)
	if d := h.status(t); d.Underlay == nil || d.Underlay.IPv4 != eth0.IPv4 {
		t.Errorf("status: %+v", d)
	}
}

func TestOpenedWithTheOptionsOfTheNetwork(t *testing.T) {
	for _, tc := range []struct{ backend, want string }{
		{`{"Type": "udp", "Port": 0}`, "Backend.Port"},
		{`{"Type": "udp", "Port": 70000}`, "Backend.Port"},
		{`{"Type": "udp", "Port": "x"}`, "Backend.Port"},
	} {
		h := newRig(t)
		h.write(t, strings.Replace(twoNodes, `{"Type": "udp"}`, tc.backend, 1))
		h.launch(t)
		if err := h.wait(t); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %v, want %s", tc.backend, err, tc.want)
		}
	}
}

func TestStatusSaysWhatIsWaitedForFromTheStart(t *testing.T) {
	s := newState("file x", "the lease file")
	if d := s.document(); d.Waiting != "the lease file" || d.Source != (status.Source{Name: "file x"}) || d.PID != os.Getpid() {
		t.Errorf("%+v", d)
	}
	if s.counters() != nil || s.gauges().Device.Kind != "" {
		t.Error("there is no data plane yet")
	}
}
