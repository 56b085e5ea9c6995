package daemon

import (
	"strings"
	"testing"

	"github.com/twillnet/twill/internal/status"
)

// threeNodes is twoNodes with another peer.
var threeNodes = strings.Replace(twoNodes, `"192.0.2.2"}`, `"192.0.2.2"},
    {"Subnet": "10.5.3.0/24", "PublicIP": "192.0.2.3"}`, 1)

func TestChangeOfTheLeaseFileReachesTheDataPlane(t *testing.T) {
	h := newRig(t)
	h.start(t)
	h.write(t, threeNodes)
	h.eventually(t, "the new peer is passed on", func() bool {
		return strings.HasSuffix(h.dp.calls(), "leases 10.5.1.0-24 10.5.2.0-24 10.5.3.0-24")
	})
	h.eventually(t, "the status counts it", func() bool { return h.status(t).Source.Leases == 3 })
	h.write(t, twoNodes)
	h.eventually(t, "the peer is gone", func() bool {
		return strings.HasSuffix(h.dp.calls(), "leases 10.5.1.0-24 10.5.2.0-24")
	})
}

func TestBrokenLeaseFileIsShownAndChangesNothing(t *testing.T) {
	h := newRig(t)
	h.start(t)
	before := h.dp.calls()
	h.write(t, strings.Replace(twoNodes, "10.5.2.0/24", "10.5.2.0/33", 1))
	var d *status.Document
	h.eventually(t, "the status shows the error", func() bool { d = h.status(t); return d.Source.LastError != "" })
	if !strings.Contains(d.Source.LastError, "Leases[1].Subnet") || d.Source.Leases != 2 || d.Waiting != "" {
		t.Errorf("status: %+v", d)
	}
	if h.state.gauges().Source.OK {
		t.Error("the metric says that all is well")
	}
	if got := h.dp.calls(); got != before {
		t.Errorf("the data plane was passed %s", strings.TrimPrefix(got, before))
	}

	h.write(t, twoNodes)
	h.eventually(t, "the error goes", func() bool { return h.status(t).Source.LastError == "" })
	if !h.state.gauges().Source.OK {
		t.Error("the metric still says that something is wrong")
	}
	if n := strings.Count(h.logged(), "lease source rejected"); n != 1 {
		t.Errorf("%d lines about the error in\n%s", n, h.logged())
	}
}

func TestWhatTakesARestartSaysSoOnce(t *testing.T) {
	for _, tc := range []struct {
		name, old, new, want string
		leases               int // once there is a third node
	}{
		{"network", `"10.5.0.0/16"`, `"10.0.0.0/8"`,
			"the network is now [10.0.0.0/8]", 3},
		{"own lease gone", `{"Subnet": "10.5.1.0/24", "PublicIP": "192.0.2.1"},`, "",
			"this node's lease 10.5.1.0-24 was deleted", 2},
		{"own lease given away", `"192.0.2.1"`, `"192.0.2.9"`,
			"this node's lease 10.5.1.0-24 now belongs to another public IP", 3},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h := newRig(t)
			h.start(t)
			h.write(t, strings.Replace(twoNodes, tc.old, tc.new, 1))
			h.eventually(t, "the status says it", func() bool { return strings.Contains(h.status(t).Restart, tc.want) })
			h.write(t, strings.Replace(threeNodes, tc.old, tc.new, 1))
			h.eventually(t, "the next change arrives", func() bool { return h.status(t).Source.Leases == tc.leases })
			if n := strings.Count(h.logged(), "restart needed"); n != 1 {
				t.Errorf("%d lines in\n%s", n, h.logged())
			}
			if d := h.status(t); d.Waiting != "" {
				t.Errorf("no longer ready: %s", d.Waiting)
			}
			h.write(t, twoNodes)
			h.eventually(t, "all is as at the start", func() bool { return h.status(t).Restart == "" })
		})
	}
}

func TestChangedBackendIsTakenOverAtOnce(t *testing.T) {
	for _, tc := range []struct {
		name, backend, status string
		override              backendType
	}{
		{"options", `{"Type": "udp", "Port": 9000}`, "udp", ""},
		{"type", `{"Type": "host-gw"}`, "host-gw", ""},
		{"options of an override", `{"Type": "vxlan", "UDPPort": 9000}`, "udp", "udp"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h := newRig(t)
			h.options.backend = tc.override
			h.start(t)
			h.write(t, strings.Replace(twoNodes, `{"Type": "udp"}`, tc.backend, 1))
			h.eventually(t, "the data plane is another", func() bool {
				return strings.HasSuffix(h.dp.calls(), "run, run ended, close, open, leases 10.5.1.0-24 10.5.2.0-24, run")
			})
			h.eventually(t, "the daemon is ready again", func() bool { return h.state.waiting() == "" })
			if d := h.status(t); d.Backend != tc.status || d.Restart != "" {
				t.Errorf("status: %+v", d)
			}
		})
	}
}

// What is the same for this node must not disturb its pods.
func TestBackendOfTheOthersDoesNotDisturbANodeWithItsOwn(t *testing.T) {
	h := newRig(t)
	h.options.backend = "udp"
	h.start(t)
	h.write(t, strings.Replace(threeNodes, `{"Type": "udp"}`, `{"Type": "auto"}`, 1))
	h.eventually(t, "the third node arrives", func() bool { return h.status(t).Source.Leases == 3 })
	if calls := h.dp.calls(); strings.Contains(calls, "close") {
		t.Error(calls)
	}
}

func TestBackendThatTheNodeLacksChangesNothing(t *testing.T) {
	for backend, want := range map[string]string{
		`{"Type": "wireguard"}`:          `backend type "wireguard" is not supported by twilld, only by flannel`,
		`{"Type": "vxlan"}`:              "no VXLAN in a test; or start twilld with --backend=auto",
		`{"Type": "vxlan", "VNI": -1}`:   "Backend.VNI",
		`{"Type": "udp", "Port": 70000}`: "Backend.Port",
	} {
		h := newRig(t)
		h.start(t)
		h.write(t, strings.Replace(twoNodes, `{"Type": "udp"}`, backend, 1))
		h.eventually(t, "the status says it", func() bool { return strings.Contains(h.state.waiting(), want) })
		if calls := h.dp.calls(); strings.Contains(calls, "close") {
			t.Errorf("%s: %s", backend, calls)
		}
		if n := strings.Count(h.logged(), "lease source rejected"); n != 1 {
			t.Errorf("%s: reported %d times:\n%s", backend, n, h.logged())
		}
		h.write(t, threeNodes)
		h.eventually(t, "the corrected configuration is in force", func() bool {
			return h.state.waiting() == "" && strings.HasSuffix(h.dp.calls(), "10.5.3.0-24")
		})
	}
}

// Leases of another network would leave the pods of this one without peers.
func TestLeasesOfAnotherNetworkWaitForTheRestart(t *testing.T) {
	h := newRig(t)
	h.start(t)
	before := h.dp.calls()
	h.write(t, strings.NewReplacer("10.5.", "10.6.").Replace(threeNodes))
	h.eventually(t, "the status says it", func() bool { return h.status(t).Restart != "" })
	if got := h.dp.calls(); got != before {
		t.Errorf("the data plane was passed %s", strings.TrimPrefix(got, before))
	}
	h.write(t, threeNodes)
	h.eventually(t, "back in the network, the leases are passed on", func() bool {
		return strings.HasSuffix(h.dp.calls(), "leases 10.5.1.0-24 10.5.2.0-24 10.5.3.0-24")
	})
}

// A configuration of another network waits for the restart, after which this node
// could not start with it. That it waits does not make it good.
func TestBadBackendOfAnotherNetworkIsReported(t *testing.T) {
	h := newRig(t)
	h.start(t)
	other := strings.Replace(twoNodes, "10.5.0.0/16", "10.0.0.0/8", 1)
	h.write(t, other)
	h.eventually(t, "a restart is asked for", func() bool { return h.status(t).Restart != "" })
	h.write(t, strings.Replace(other, `"udp"`, `"wireguard"`, 1))
	h.eventually(t, "the status shows the error", func() bool { return strings.Contains(h.status(t).Source.LastError, `"wireguard" is not supported`) })
	if d := h.status(t); d.Restart == "" || !strings.Contains(d.Waiting, `"wireguard"`) {
		t.Errorf("waiting for %q, restart needed: %q", d.Waiting, d.Restart)
	}
	if strings.Contains(h.logged(), "lease source is valid again") {
		t.Errorf("log:\n%s", h.logged())
	}
	h.write(t, other)
	h.eventually(t, "the error goes", func() bool { d := h.status(t); return d.Source.LastError == "" && d.Waiting == "" })
	if n := strings.Count(h.logged(), "lease source is valid again"); n != 1 {
		t.Errorf("%d lines in\n%s", n, h.logged())
	}
}

// The text of a file comes and goes as a whole, what a node has for it does not.
func TestFileReadAgainWithTheSameErrorStaysRefused(t *testing.T) {
	h := newRig(t)
	h.start(t)
	unfit := strings.Replace(twoNodes, `"udp"`, `"wireguard"`, 1)
	h.write(t, unfit)
	h.eventually(t, "the backend is refused", func() bool { return strings.Contains(h.state.waiting(), "wireguard") })
	h.write(t, "{")
	h.eventually(t, "the text is refused", func() bool { return !strings.Contains(h.status(t).Source.LastError, "wireguard") })
	h.write(t, unfit)
	h.eventually(t, "the backend is refused again", func() bool { return strings.Contains(h.state.waiting(), "wireguard") })
	h.write(t, twoNodes)
	h.eventually(t, "all is well", func() bool { return h.state.waiting() == "" && h.status(t).Source.LastError == "" })
}
