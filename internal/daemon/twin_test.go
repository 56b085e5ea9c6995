package daemon

import (
	"strings"
	"testing"
	"time"

	"github.com/twillnet/twill/internal/host/underlay"
	"github.com/twillnet/twill/internal/lab/testkit"
)

// identified makes h the host with an ID.
func (h *rig) identified(id string) {
	h.daemon.identity = func(underlay.Interface) string { return id }
	h.daemon.answerWithin = testkit.Patience
}

// beside returns another host, with an ID and the address of h, that reads the same
// etcd.
func (h *etcdRig) beside(t *testing.T, id string) *rig {
	other := newRig(t)
	other.options.leaseFile, other.options.etcd = "", h.options.etcd
	other.identified(id)
	return other
}

// Cloned machines, or virtual ones behind a NAT each of its own, may all have one
// address.
func TestHostWithTheAddressOfANodeThatIsAliveTakesNoLease(t *testing.T) {
	h := newEtcdRig(t)
	h.identified("2")
	h.put(t, configKey, goodConf)
	h.start(t)
	key, value := h.lease(t)
	if !strings.Contains(value, `"Node":"2"`) {
		t.Fatalf("lease: %s", value)
	}
	before := h.dp.calls()
	for _, id := range []string{"1", "3"} { // the smaller as well as the greater
		clone := h.beside(t, id)
		clone.launch(t)
		clone.eventually(t, "the clone says what it waits for", func() bool {
			w := clone.state.waiting()
			return strings.HasPrefix(w, "a lease: another host has the same public address 192.0.2.1") && strings.Contains(w, "--public-ip")
		})
		if d := clone.status(t); d.AddressConflict == "" || d.Lease != nil || clone.dp.calls() != "" {
			t.Errorf("status of the clone: %q, %+v; data plane: %s", d.AddressConflict, d.Lease, clone.dp.calls())
		}
		h.eventually(t, "the lease is as it was", func() bool { k, v := h.lease(t); return k == key && v == value })
		if d := h.status(t); d.AddressConflict == "" || d.Waiting != "" {
			t.Errorf("status of the node: %q, waiting for %q", d.AddressConflict, d.Waiting)
		}
		// An address of its own is all that it takes.
		clone.wires.become(moved(), nil)
		clone.eventually(t, "the clone is ready", func() bool { return clone.state.waiting() == "" })
		if d := clone.status(t); d.Lease == nil || d.Lease.PublicIP != moved().PublicIP {
			t.Errorf("lease of the clone: %+v", d.Lease)
		}
		if err := clone.stop(t); err != nil {
			t.Error(err)
		}
		_, err := h.client.Delete(t.Context(), "/coreos.com/network/subnets/"+strings.ReplaceAll(clone.dp.node.own.Subnet.String(), "/", "-"))
		testkit.Must(t, err)
	}
	if calls := strings.TrimPrefix(h.dp.calls(), before); strings.Contains(calls, "close") {
		t.Errorf("the node was disturbed: %s", calls)
	}
	if n := strings.Count(h.logged(), "another host has this node's public address"); n != 1 {
		t.Errorf("%d lines about it:\n%s", n, h.logged())
	}
}

func TestLeaseOfAHostThatIsGoneIsTakenOver(t *testing.T) {
	h := newEtcdRig(t)
	h.identified("1")
	h.put(t, configKey, goodConf)
	h.start(t)
	key, _ := h.lease(t)
	if err := h.stop(t); err != nil {
		t.Fatal(err)
	}
	next := h.beside(t, "2")
	next.answerWithin = 10 * time.Millisecond
	next.start(t)
	now, value := h.lease(t)
	if now != key || !strings.Contains(value, `"Node":"2"`) || strings.Contains(value, "Challenge") {
		t.Errorf("had %s, has %s %s", key, now, value)
	}
}

func TestRestartedHostIsNotAskedWhetherItIsAlive(t *testing.T) {
	h := newEtcdRig(t)
	h.identified("1")
	h.put(t, configKey, goodConf)
	h.start(t)
	if err := h.stop(t); err != nil {
		t.Fatal(err)
	}
	again := h.beside(t, "1")
	again.start(t)
	if strings.Contains(again.logged(), "checking whether it is alive") {
		t.Errorf("log:\n%s", again.logged())
	}
}

// Two that start at once may both find no lease, and share the one that comes.
func TestOfTwoHostsThatShareALeaseTheGreaterIDYields(t *testing.T) {
	for _, tc := range []struct {
		own, other string
		yields     bool
	}{{"1", "2", false}, {"2", "1", true}} {
		t.Run(tc.own, func(t *testing.T) {
			h := newEtcdRig(t)
			h.identified(tc.own)
			h.daemon.answerWithin = 10 * time.Millisecond // the other is not there
			h.put(t, configKey, goodConf)
			h.start(t)
			key, value := h.lease(t)
			r, err := h.client.Get(t.Context(), key)
			testkit.Must(t, err)
			_, err = h.client.Put(t.Context(), key, strings.Replace(value, `"Node":"`+tc.own, `"Node":"`+tc.other, 1))
			testkit.Must(t, err)
			h.eventually(t, "the lease is this host's again", func() bool {
				now, err := h.client.Get(t.Context(), key)
				return err == nil && now.Kvs[0].ModRevision > r.Kvs[0].ModRevision+1 && string(now.Kvs[0].Value) == value
			})
			h.becomesReady(t)
			if yielded := strings.Contains(h.dp.calls(), "close"); yielded != tc.yields {
				t.Errorf("data plane: %s; want it closed: %t", h.dp.calls(), tc.yields)
			}
			if h.status(t).AddressConflict == "" && !tc.yields {
				t.Error("the status says nothing")
			}
			if !strings.Contains(h.logged(), "another host has this node's public address") {
				t.Errorf("log:\n%s", h.logged())
			}
		})
	}
}

func TestIDOfAHostIsTheSameEachTime(t *testing.T) {
	lo := underlay.Interface{Index: 1}
	if a, b := hostID(lo), hostID(lo); a != b || len(a) != 16 {
		t.Errorf("%q, then %q", a, b)
	}
}

// To start with the lease that was known last, there need be nobody to ask about it.
func TestHostWithAnIDStartsWhileItsStoreIsAway(t *testing.T) {
	h := newEtcdRig(t)
	h.identified("1")
	h.put(t, configKey, goodConf)
	h.start(t)
	if err := h.stop(t); err != nil {
		t.Fatal(err)
	}
	h.server.Kill()
	again := h.beside(t, "1")
	again.options.subnetFile = h.options.subnetFile // and the leases beside it
	again.launch(t)
	again.eventually(t, "the data plane runs", func() bool { return strings.Contains(again.dp.calls(), ", run") })
}

// A host with stock flannel and the same address writes no ID. What it writes is not
// taken for this node's own.
func TestForeignWriteUnderTheSameAddressIsNotTakenForOurs(t *testing.T) {
	for name, foreign := range map[string]string{
		"stock flannel's udp backend": `{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"udp"}`,
		"stock flannel's vxlan":       `{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:99:99:99:99:99"}}`,
	} {
		t.Run(name, func(t *testing.T) {
			h := newEtcdRig(t)
			h.identified("1")
			h.put(t, configKey, goodConf)
			h.start(t)
			key, value := h.lease(t)
			r, err := h.client.Get(t.Context(), key)
			testkit.Must(t, err)
			_, err = h.client.Put(t.Context(), key, foreign)
			testkit.Must(t, err)
			h.eventually(t, "the lease is this host's again", func() bool {
				now, err := h.client.Get(t.Context(), key)
				return err == nil && now.Kvs[0].ModRevision > r.Kvs[0].ModRevision+1 && string(now.Kvs[0].Value) == value
			})
			h.becomesReady(t)
			if !strings.Contains(h.logged(), "another host has this node's public address") {
				t.Errorf("log:\n%s", h.logged())
			}
		})
	}
}

// With some backends a node writes what stock flannel would, byte for byte, without an ID.
func TestNodeThatWritesNoIDAnyMoreIsNotAnotherHost(t *testing.T) {
	h := newEtcdRig(t)
	h.identified("1")
	h.put(t, configKey, goodConf)
	h.start(t)
	_, withID := h.lease(t)
	for range 2 {
		h.put(t, configKey, `{"Network": "10.5.0.0/16", "Backend": {"Type": "host-gw"}}`)
		h.eventually(t, "the lease has no ID", func() bool { _, v := h.lease(t); return strings.Contains(v, "host-gw") && !strings.Contains(v, "Node") })
		h.becomesReady(t)
		h.put(t, configKey, goodConf)
		h.eventually(t, "the lease is as it was", func() bool { _, v := h.lease(t); return v == withID })
		h.becomesReady(t)
	}
	if d := h.status(t); d.AddressConflict != "" || strings.Contains(h.logged(), "another host") {
		t.Errorf("conflict %q, log:\n%s", d.AddressConflict, h.logged())
	}
}

// The store reports what a node has written after the node has written something else.
func TestNodeWhoseBackendFlapsIsNotAnotherHost(t *testing.T) {
	h := newEtcdRig(t)
	h.identified("1")
	h.put(t, configKey, goodConf)
	h.start(t)
	_, withID := h.lease(t)
	for range 50 {
		h.put(t, configKey, `{"Network": "10.5.0.0/16", "Backend": {"Type": "host-gw"}}`)
		h.put(t, configKey, goodConf)
	}
	h.eventually(t, "the lease is as it was", func() bool { _, v := h.lease(t); return v == withID })
	h.becomesReady(t)
	if d := h.status(t); d.AddressConflict != "" || strings.Contains(h.logged(), "another host") {
		t.Errorf("conflict %q, log:\n%s", d.AddressConflict, h.logged())
	}
}
