package daemon

import (
	"errors"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/twillnet/twill/internal/host/underlay"
)

// moved is eth0 at another address, for which there is no lease yet.
func moved() underlay.Interface {
	link := eth0
	link.IPv4 = netip.MustParseAddr("192.0.2.77")
	link.PublicIP = link.IPv4
	return link
}

// narrower is eth0 with a smaller MTU.
func narrower() underlay.Interface {
	link := eth0
	link.MTU = 1400
	return link
}

func (h *rig) subnetEnv(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(h.options.subnetFile)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestNewMTUReachesDeviceAndSubnetFile(t *testing.T) {
	h := newRig(t)
	h.start(t)
	h.wires.become(narrower(), nil)
	h.eventually(t, "subnet.env has the MTU", func() bool { return strings.Contains(h.subnetEnv(t), "FLANNEL_MTU=1372\n") })
	// A data plane runs in a goroutine of its own, which may begin after the node is
	// found ready.
	h.eventually(t, "ready, with a data plane that runs", func() bool {
		return h.state.waiting() == "" && strings.HasSuffix(h.dp.calls(), ", run")
	})
	const leases = "leases 10.5.1.0-24 10.5.2.0-24"
	if got, want := h.dp.calls(), "open, "+leases+", run, run ended, close, open, "+leases+", run"; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if got := h.status(t).Underlay.MTU; got != 1400 {
		t.Errorf("status says MTU %d", got)
	}
	const line = `msg="interface has changed" was="eth0 (192.0.2.1, MTU 1500)" now="eth0 (192.0.2.1, MTU 1400)"`
	if n := strings.Count(h.logged(), line); n != 1 {
		t.Errorf("%d lines with %s in\n%s", n, line, h.logged())
	}
}

func TestChangeThatChangesNothingDisturbsNothing(t *testing.T) {
	h := newRig(t)
	h.start(t)
	before := h.dp.calls()
	h.wires.become(eth0, nil)
	h.write(t, threeNodes) // of which is known when it has arrived
	h.eventually(t, "the next change arrives", func() bool { return h.status(t).Source.Leases == 3 })
	if got := strings.TrimPrefix(h.dp.calls(), before); strings.Contains(got, "close") {
		t.Errorf("data plane: %s", got)
	}
}

func TestNewAddressTakesTheLeaseAlong(t *testing.T) {
	h := newRig(t)
	h.start(t)
	h.wires.become(moved(), nil)
	h.eventually(t, "not ready without a lease of the address", func() bool {
		return strings.Contains(h.state.waiting(), "a lease: ") && strings.Contains(h.state.waiting(), "192.0.2.77")
	})
	h.dp.mu.Lock()
	at := h.dp.node.link.IPv4
	h.dp.mu.Unlock()
	if at != moved().IPv4 {
		t.Errorf("the data plane is at %s", at)
	}
	h.write(t, strings.Replace(twoNodes, `"192.0.2.1"`, `"192.0.2.77"`, 1))
	h.eventually(t, "ready when there is one", func() bool { return h.state.waiting() == "" })
	if l := h.status(t).Lease; l.PublicIP != moved().IPv4 || l.Subnet.String() != "10.5.1.0/24" {
		t.Errorf("lease: %+v", l)
	}
	if d := h.status(t); d.Restart != "" {
		t.Errorf("restart needed: %s", d.Restart)
	}
}

func TestNewAddressWithAnotherSubnetOpensTheDataPlaneForIt(t *testing.T) {
	h := newRig(t)
	h.write(t, strings.Replace(threeNodes, `"192.0.2.3"`, `"192.0.2.77"`, 1))
	h.start(t)
	h.wires.become(moved(), nil)
	h.eventually(t, "subnet.env has the other subnet", func() bool { return strings.Contains(h.subnetEnv(t), "FLANNEL_SUBNET=10.5.3.1/24\n") })
	h.eventually(t, "ready", func() bool { return h.state.waiting() == "" })
	h.dp.mu.Lock()
	own := h.dp.node.own.Subnet
	h.dp.mu.Unlock()
	if own.String() != "10.5.3.0/24" {
		t.Errorf("the data plane is that of %s", own)
	}
	if !strings.Contains(h.logged(), `msg="subnet has changed" was=[10.5.1.0/24] now=[10.5.3.0/24]`) {
		t.Errorf("log:\n%s", h.logged())
	}
}

func TestInterfaceThatGoesIsWaitedForWithTheDataPlaneOpen(t *testing.T) {
	h := newRig(t)
	h.start(t)
	before := h.dp.calls()
	h.wires.become(eth0, errors.New("interface eth0 is down; set it up with 'ip link set eth0 up'"))
	const want = "an interface to the other nodes: interface eth0 is down; set it up with 'ip link set eth0 up'"
	h.eventually(t, "not ready", func() bool { return h.state.waiting() == want })
	h.wires.become(eth0, nil)
	h.eventually(t, "ready again", func() bool { return h.state.waiting() == "" })
	if got := h.dp.calls(); got != before {
		t.Errorf("data plane: %s", strings.TrimPrefix(got, before))
	}
	if n := strings.Count(h.logged(), `msg="not ready"`); n != 1 {
		t.Errorf("%d lines in\n%s", n, h.logged())
	}
}

// An interface that is back without an event, such as a route.
func TestMissingInterfaceIsLookedForByItself(t *testing.T) {
	h := newRig(t)
	h.start(t)
	h.wires.become(eth0, errors.New("there is no default route"))
	h.eventually(t, "not ready", func() bool { return h.state.waiting() != "" })
	h.wires.mu.Lock()
	h.wires.err = nil
	h.wires.mu.Unlock()
	h.eventually(t, "ready again", func() bool { return h.state.waiting() == "" })
}

func TestDataPlaneThatDoesNotOpenAgainIsTriedUntilItDoes(t *testing.T) {
	h := newRig(t)
	h.start(t)
	h.dp.breaks(errors.New("bind 192.0.2.1:8285: cannot assign requested address"))
	h.wires.become(narrower(), nil)
	h.eventually(t, "not ready", func() bool { return strings.HasPrefix(h.state.waiting(), "the data plane: bind 192.0.2.1:8285") })
	if d := h.status(t); d.Dataplane != nil {
		t.Error("the status shows a data plane")
	}
	h.write(t, threeNodes)
	h.eventually(t, "leases are taken in", func() bool { return h.status(t).Source.Leases == 3 })
	tries := h.dp.tries.Load()
	h.eventually(t, "it is tried again", func() bool { return h.dp.tries.Load() > tries })
	if n := strings.Count(h.logged(), `msg="not ready"`); n != 1 {
		t.Errorf("%d lines about one thing:\n%s", n, h.logged())
	}
	h.dp.breaks(nil)
	h.eventually(t, "ready again, with a data plane that runs", func() bool {
		return h.state.waiting() == "" && strings.HasSuffix(h.dp.calls(), "close, open, leases 10.5.1.0-24 10.5.2.0-24 10.5.3.0-24, run")
	})
}

// Opening a device changes interfaces, which is notified, and must not lead to the next
// attempt at once.
func TestDataPlaneThatDoesNotOpenIsNotTriedAtEachChangeOfAnInterface(t *testing.T) {
	h := newRig(t)
	h.start(t)
	h.dp.breaks(errors.New("bind 192.0.2.1:8285: address already in use"))
	h.wires.become(narrower(), nil)
	h.eventually(t, "not ready", func() bool { return h.state.waiting() != "" })
	start, before := time.Now(), int(h.dp.tries.Load())
	const changes = 100
	for range changes {
		h.wires.become(narrower(), nil)
	}
	most := 2 + int(time.Since(start)/retryAfter)
	if tries := int(h.dp.tries.Load()) - before; tries > most {
		t.Errorf("%d attempts at %d changes, want at most %d", tries, changes, most)
	}
}

func TestLeasesThatTheDataPlaneCouldNotFollowArePassedAgain(t *testing.T) {
	h := newRig(t)
	h.options.resync = 1
	h.dp.again = true
	h.start(t)
	h.eventually(t, "the leases are passed again", func() bool { return strings.Count(h.dp.calls(), "leases 10.5.1.0-24 10.5.2.0-24") > 1 })
	h.dp.mu.Lock()
	h.dp.again = false
	h.dp.mu.Unlock()
	h.write(t, threeNodes)
	h.eventually(t, "the third node is passed on", func() bool { return strings.HasSuffix(h.dp.calls(), "10.5.3.0-24") })
}

func TestServiceManagerIsNotifiedOfAChange(t *testing.T) {
	manager := listenForNotify(t)
	h := newRig(t)
	h.daemon.notifySocket = manager.path
	h.start(t)
	h.wires.become(narrower(), nil)
	h.eventually(t, "the change is made", func() bool { return strings.Contains(h.subnetEnv(t), "FLANNEL_MTU=1372\n") })
	h.wires.become(narrower(), errors.New("interface eth0 is gone"))
	for i, want := range []string{
		"READY=1\nSTATUS=ready", "RELOADING=1\nMONOTONIC_USEC=", "READY=1\nSTATUS=ready",
		"STATUS=waiting for an interface to the other nodes: interface eth0 is gone",
	} {
		if got := manager.next(t); !strings.HasPrefix(got, want) {
			t.Errorf("message %d: got %q, want %q", i, got, want)
		}
	}
}

func TestSubnetFileThatIsRemovedComesBack(t *testing.T) {
	h := newRig(t)
	h.options.resync = 1
	h.start(t)
	want := h.subnetEnv(t)
	if err := os.Remove(h.options.subnetFile); err != nil {
		t.Fatal(err)
	}
	h.eventually(t, "it is back", func() bool {
		text, err := os.ReadFile(h.options.subnetFile)
		return err == nil && string(text) == want
	})
	if n := strings.Count(h.logged(), "msg=ready"); n != 1 {
		t.Errorf("ready %d times:\n%s", n, h.logged())
	}
}
