package daemon

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/twillnet/twill/internal/backend"
	"github.com/twillnet/twill/internal/host/underlay"
	"github.com/twillnet/twill/internal/lab/etcdtest"
	"github.com/twillnet/twill/tun"
)

const (
	configKey = "/coreos.com/network/config"
	goodConf  = `{"Network": "10.5.0.0/16", "SubnetMin": "10.5.1.0", "SubnetMax": "10.5.9.0", "Backend": {"Type": "udp"}}`
)

// etcdRig is a host that reads its leases from a real etcd.
type etcdRig struct {
	*rig
	server *etcdtest.Server
	client *clientv3.Client
}

func newEtcdRig(t *testing.T) *etcdRig {
	t.Helper()
	server := etcdtest.Start(t, etcdtest.Options{})
	h := &etcdRig{newRig(t), server, server.Client(t)}
	h.options.leaseFile = ""
	h.options.etcd.Endpoints = []string{server.Endpoint}
	h.daemon.state = newState(h.options.source(), "the source of leases")
	return h
}

func (h *etcdRig) put(t *testing.T, key, value string) {
	t.Helper()
	if _, err := h.client.Put(t.Context(), key, value); err != nil {
		t.Fatal(err)
	}
}

// lease returns the key and the value of the only lease but for those of node 2.
func (h *etcdRig) lease(t *testing.T) (key, value string) {
	t.Helper()
	r, err := h.client.Get(t.Context(), "/coreos.com/network/subnets/", clientv3.WithPrefix())
	if err != nil {
		t.Fatal(err)
	}
	own := slices.DeleteFunc(r.Kvs, func(kv *mvccpb.KeyValue) bool { return strings.Contains(string(kv.Value), `"192.0.2.2"`) })
	if len(own) != 1 {
		t.Fatalf("leases in etcd: %v; want one of the host", own)
	}
	return string(own[0].Key), string(own[0].Value)
}

func (h *etcdRig) becomesReady(t *testing.T) {
	t.Helper()
	h.eventually(t, "ready", func() bool { return h.state.waiting() == "" })
}

func TestNodeWithoutPartialChecksumsHasALeaseLikeStockFlannels(t *testing.T) {
	h := newEtcdRig(t)
	h.options.switches.PartialChecksums = tun.Off
	h.put(t, configKey, goodConf)
	h.start(t)
	key, value := h.lease(t)
	if want := `{"PublicIP":"192.0.2.1","PublicIPv6":null}`; value != want {
		t.Errorf("%s is %s, want %s", key, value, want)
	}
}

// A key inside a peer's subnet would take its traffic, on every backend, since the
// longest prefix wins.
func TestLeaseInsideThatOfAnotherNodeTakesNoTraffic(t *testing.T) {
	h := newEtcdRig(t)
	h.put(t, configKey, goodConf)
	h.start(t)
	own, _ := h.lease(t)
	const rightful = "/coreos.com/network/subnets/10.5.20.0-24"
	h.put(t, rightful, `{"PublicIP":"192.0.2.2","PublicIPv6":null}`)
	inside := []string{"/coreos.com/network/subnets/10.5.20.128-25", strings.TrimSuffix(own, "-24") + "-26"}
	for _, key := range inside {
		h.put(t, key, `{"PublicIP":"192.0.2.3","PublicIPv6":null}`)
	}
	h.eventually(t, "both conflicts are reported", func() bool {
		s := h.status(t).Source
		return s.Leases == 4 && s.Conflicts == 2 && strings.Contains(s.ConflictsWhy, "10.5.20.128/25")
	})
	h.eventually(t, "the data plane has the rightful leases", func() bool {
		subnets := []string{}
		for _, l := range h.dp.current() {
			subnets = append(subnets, string(l.Key()))
		}
		slices.Sort(subnets)
		want := []string{own[strings.LastIndex(own, "/")+1:], "10.5.20.0-24"}
		slices.Sort(want)
		return slices.Equal(subnets, want)
	})
	if got := strings.Count(h.logged(), "leases overlap, the wider subnet is used"); got > 2 {
		t.Errorf("the conflicts are logged %d times:\n%s", got, h.logged())
	}
	for _, key := range inside {
		if _, err := h.client.Delete(t.Context(), key); err != nil {
			t.Fatal(err)
		}
	}
	h.eventually(t, "the end of the conflicts is reported", func() bool {
		return h.status(t).Source.Conflicts == 0 && strings.Contains(h.logged(), "leases no longer overlap")
	})
}

func TestNodeTakesItsLeaseFromEtcd(t *testing.T) {
	h := newEtcdRig(t)
	h.put(t, configKey, goodConf)
	h.start(t)
	key, value := h.lease(t)
	if want := `{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendData":{"PartialChecksums":true}}`; value != want {
		t.Errorf("%s is %s, want %s", key, value, want)
	}
	d := h.status(t)
	if d.Source.Name != "etcd "+h.server.Endpoint+" /coreos.com/network" || d.Source.Leases != 1 || d.Lease.Expiration.IsZero() {
		t.Errorf("status: %+v, %+v", d.Source, d.Lease)
	}
	h.put(t, "/coreos.com/network/subnets/10.5.200.0-24", `{"PublicIP":"192.0.2.2","PublicIPv6":null}`)
	h.eventually(t, "another node's lease arrives", func() bool { return strings.Contains(h.dp.calls(), "10.5.200.0-24") })
	if err := h.stop(t); err != nil {
		t.Error(err)
	}
	if r, err := h.client.Get(context.Background(), key); err != nil || len(r.Kvs) != 1 {
		t.Errorf("the lease does not outlive the daemon: %v, %v", r, err)
	}
}

func TestWrongConfigIsReportedOnceAndACorrectedOneUsedAtOnce(t *testing.T) {
	h := newEtcdRig(t)
	h.launch(t)
	for i, step := range []struct{ config, says string }{
		{"", "no network config"},
		{`{"Network": "10.5.0.0/33"}`, `Network "10.5.0.0/33"`},
		{`{"Network": "10.5.0.0/16", "Backend": {"Type": "wireguard"}}`, `backend type "wireguard" is not supported by twilld, only by flannel`},
		{`{"Network": "10.5.0.0/16", "Backend": {"Type": "udp", "Port": 0}}`, "Backend.Port 0: want a port"},
	} {
		if step.config != "" {
			h.put(t, configKey, step.config)
		}
		h.eventually(t, "not ready because of "+step.says, func() bool {
			w := h.state.waiting()
			return strings.HasPrefix(w, "a valid network configuration: ") && strings.Contains(w, step.says)
		})
		if got := h.status(t).Source.LastError; !strings.Contains(got, step.says) {
			t.Errorf("status: %s, want %s", got, step.says)
		}
		if n := strings.Count(h.logged(), "network configuration rejected"); n != i+1 {
			t.Errorf("%d lines about %d configurations:\n%s", n, i+1, h.logged())
		}
	}
	h.put(t, configKey, goodConf)
	h.becomesReady(t)
	if got := h.status(t).Source.LastError; got != "" {
		t.Errorf("status still says %s", got)
	}
}

func TestConfigThatBreaksLaterMakesTheNodeNotReadyAndLosesNoPackets(t *testing.T) {
	h := newEtcdRig(t)
	h.put(t, configKey, goodConf)
	h.start(t)
	before := h.dp.calls()
	h.put(t, configKey, strings.Replace(goodConf, "10.5.0.0/16", "10.5.0.0/33", 1))
	h.eventually(t, "not ready", func() bool { return strings.Contains(h.state.waiting(), `Network "10.5.0.0/33"`) })
	h.put(t, configKey, goodConf)
	h.becomesReady(t)
	if got := strings.TrimPrefix(h.dp.calls(), before); strings.Contains(got, "close") {
		t.Errorf("data plane: %s", got)
	}
}

// Applying the plan may take long, for example where many read the status. Leases that
// change one after the other meanwhile must not queue up, each to be applied by itself.
func TestLeasesThatChangeWhileThePlanIsAppliedAreAppliedTogether(t *testing.T) {
	h := newEtcdRig(t)
	h.put(t, configKey, `{"Network": "10.5.0.0/16", "SubnetMax": "10.5.9.0", "Backend": {"Type": "udp"}}`)
	h.start(t)
	const changes = 60
	change := func(i int) {
		h.put(t, fmt.Sprintf("/coreos.com/network/subnets/10.5.%d.0-24", 100+i), fmt.Sprintf(`{"PublicIP":"192.0.3.%d","PublicIPv6":null}`, i))
	}
	last := fmt.Sprintf("10.5.%d.0-24", 100+changes)
	h.wires.mu.Lock() // the plan is not applied until this is released
	for i := range changes + 1 {
		change(i)
	}
	before := h.wires.seen
	h.wires.mu.Unlock()
	h.eventually(t, "the last lease is in force", func() bool { return strings.Contains(h.dp.calls(), last) })
	h.wires.mu.Lock()
	defer h.wires.mu.Unlock()
	if n := h.wires.seen - before; n > changes/2 {
		t.Errorf("the plan was applied %d times for %d changes", n, changes)
	}
}

func TestDeletedLeaseIsTakenAgain(t *testing.T) {
	h := newEtcdRig(t)
	h.put(t, configKey, goodConf)
	h.start(t)
	key, value := h.lease(t)
	before := h.dp.calls()
	if _, err := h.client.Delete(t.Context(), key); err != nil {
		t.Fatal(err)
	}
	h.eventually(t, "the lease is back", func() bool {
		r, err := h.client.Get(t.Context(), key)
		return err == nil && len(r.Kvs) == 1 && string(r.Kvs[0].Value) == value
	})
	h.becomesReady(t)
	if got := strings.TrimPrefix(h.dp.calls(), before); strings.Contains(got, "close") {
		t.Errorf("data plane: %s", got)
	}
	if !strings.Contains(h.logged(), `msg="lease lost"`) {
		t.Errorf("log:\n%s", h.logged())
	}
}

func TestStolenLeaseMakesTheNodeTakeAnotherSubnet(t *testing.T) {
	h := newEtcdRig(t)
	h.put(t, configKey, goodConf)
	h.start(t)
	key, _ := h.lease(t)
	was := h.subnetEnv(t)
	h.put(t, key, `{"PublicIP":"192.0.2.2","PublicIPv6":null}`)
	h.eventually(t, "subnet.env has another subnet", func() bool { return h.subnetEnv(t) != was })
	h.becomesReady(t)
	if r, err := h.client.Get(t.Context(), key); err != nil || !strings.Contains(string(r.Kvs[0].Value), "192.0.2.2") {
		t.Errorf("the other node's lease was touched: %v, %v", r, err)
	}
	taken := strings.TrimPrefix(key, "/coreos.com/network/subnets/")
	h.eventually(t, "the other node is a peer", func() bool {
		_, after, _ := strings.Cut(h.dp.calls(), "close, open, ")
		return strings.Contains(after, taken)
	})
	if !strings.Contains(h.logged(), `msg="subnet has changed"`) {
		t.Errorf("log:\n%s", h.logged())
	}
}

// What the probe found may be refused when it comes to it.
func TestBackendThatFailsWhileRunningIsTakenBackAndTheLeaseKept(t *testing.T) {
	h := newEtcdRig(t)
	h.options.backend = "auto"
	h.daemon.probes.VXLAN = func(int) error { return nil }
	h.put(t, configKey, goodConf)
	h.start(t)
	key, before := h.lease(t)
	if !strings.Contains(before, `"Backends":["vxlan","udp"]`) {
		t.Fatalf("lease: %s", before)
	}
	// The next time it opens with udp alone.
	h.daemon.open = func(n node) (dataPlane, error) {
		_, err := h.dp.open(n)
		return withoutVXLAN{h.dp}, err
	}
	mtu := eth0
	mtu.MTU = 1400
	h.wires.become(mtu, nil)
	h.eventually(t, "the lease says udp", func() bool {
		k, is := h.lease(t)
		return k == key && !strings.Contains(is, "vxlan")
	})
	h.becomesReady(t)
	if d := h.status(t); !slices.Equal(d.Backends, []string{"udp"}) || d.BackendWhy != "no VXLAN: the test has taken it away" {
		t.Errorf("status: %v, %s", d.Backends, d.BackendWhy)
	}

	// With another MTU it may do, also when it did not with the one before.
	var refused atomic.Bool
	h.daemon.probes.VXLAN = func(int) error {
		if refused.CompareAndSwap(false, true) {
			return errors.New("not yet")
		}
		return nil
	}
	mtu.MTU = 1300
	h.wires.become(mtu, nil)
	h.eventually(t, "the data plane is that of the new MTU", func() bool {
		h.dp.mu.Lock()
		defer h.dp.mu.Unlock()
		return h.dp.node.link.MTU == mtu.MTU
	})
	h.wires.become(eth0, nil)
	h.eventually(t, "vxlan is tried again", func() bool {
		h.dp.mu.Lock()
		defer h.dp.mu.Unlock()
		return h.dp.node.link.MTU == eth0.MTU && h.dp.node.choice.Has(backend.VXLAN)
	})
}

// A kernel may get VXLAN later, or lose it. Until the backend is to be another, the
// node keeps to what it has announced.
func TestWaysStayWhileTheConfigurationAsksForTheSame(t *testing.T) {
	h := newEtcdRig(t)
	h.options.backend = "auto"
	var module atomic.Bool
	h.daemon.probes.VXLAN = func(int) error {
		if module.Load() {
			return nil
		}
		return errors.New("no VXLAN yet")
	}
	h.put(t, configKey, goodConf)
	h.start(t)
	module.Store(true)
	h.put(t, configKey, strings.Replace(goodConf, "10.5.9.0", "10.5.8.0", 1))
	h.put(t, "/coreos.com/network/subnets/10.5.200.0-24", `{"PublicIP":"192.0.2.2","PublicIPv6":null}`)
	h.eventually(t, "what came after it arrives", func() bool { return strings.Contains(h.dp.calls(), "10.5.200.0-24") })
	if calls := h.dp.calls(); strings.Contains(calls, "close") {
		t.Error(calls)
	}
	h.put(t, configKey, strings.Replace(goodConf, `"udp"`, `"udp", "Port": 9000`, 1))
	h.eventually(t, "the lease says vxlan", func() bool {
		_, value := h.lease(t)
		return strings.Contains(value, `"Backends":["vxlan","udp"]`)
	})
	h.becomesReady(t)
	if d := h.status(t); !slices.Equal(d.Backends, []string{"vxlan", "udp"}) {
		t.Errorf("status: %v", d.Backends)
	}
}

func TestRefusedConfigurationStaysRefusedWhileLeasesChange(t *testing.T) {
	for _, bad := range []string{
		strings.Replace(goodConf, `"udp"`, `"wireguard"`, 1),
		strings.Replace(goodConf, "10.5.0.0/16", "10.5.0.0/33", 1),
	} {
		h := newEtcdRig(t)
		h.put(t, configKey, goodConf)
		h.start(t)
		h.put(t, configKey, bad)
		h.eventually(t, "the node is not ready", func() bool { return strings.Contains(h.state.waiting(), "a valid network") })
		h.put(t, "/coreos.com/network/subnets/10.5.200.0-24", `{"PublicIP":"192.0.2.2","PublicIPv6":null}`)
		h.eventually(t, "another node's lease arrives", func() bool { return strings.Contains(h.dp.calls(), "10.5.200.0-24") })
		h.eventually(t, "the lease counts", func() bool { return h.status(t).Source.Leases == 2 })
		if d := h.status(t); d.Waiting == "" || d.Source.LastError == "" {
			t.Errorf("%s: waiting for %q, last error %q", bad, d.Waiting, d.Source.LastError)
		}
		h.put(t, configKey, goodConf)
		h.becomesReady(t)
		if d := h.status(t); d.Source.LastError != "" {
			t.Errorf("corrected: %q", d.Source.LastError)
		}
	}
}

// withoutVXLAN has opened with fewer backends than it was to have.
type withoutVXLAN struct{ *fakeDataplane }

func (withoutVXLAN) Failed() backend.Failed {
	return backend.Failed{backend.VXLAN: errors.New("the test has taken it away")}
}

// A lease that comes after a change of the network is one of the new network.
func TestNodeThatLosesItsLeaseMovesToTheNetworkAsItIsNow(t *testing.T) {
	h := newEtcdRig(t)
	h.daemon.open = func(n node) (dataPlane, error) {
		if n.settings.Carries() {
			return h.dp.open(n)
		}
		return h.daemon.openDataPlane(n)
	}
	h.put(t, configKey, goodConf)
	h.start(t)
	key, _ := h.lease(t)
	h.put(t, configKey, `{"Network": "10.6.0.0/16", "Backend": {"Type": "alloc"}}`)
	h.eventually(t, "a restart is asked for", func() bool { return h.status(t).Restart != "" })
	if got := h.subnetEnv(t); !strings.Contains(got, "FLANNEL_NETWORK=10.5.0.0/16\n") {
		t.Errorf("it did not wait for the restart: %s", got)
	}
	if _, err := h.client.Delete(t.Context(), key); err != nil {
		t.Fatal(err)
	}
	h.eventually(t, "subnet.env has the new network", func() bool {
		got := h.subnetEnv(t)
		return strings.HasPrefix(got, "FLANNEL_NETWORK=10.6.0.0/16\nFLANNEL_SUBNET=10.6.") && strings.Contains(got, "FLANNEL_MTU=1500\n")
	})
	h.becomesReady(t)
	if d := h.status(t); d.Restart != "" || d.Backend != "alloc" || d.Network[0].String() != "10.6.0.0/16" {
		t.Errorf("status: %+v", d)
	}
}

func TestLostLeaseEndsTheDaemonIfConfigured(t *testing.T) {
	h := newEtcdRig(t)
	h.options.onLost = exitOnLost
	h.put(t, configKey, goodConf)
	h.start(t)
	key, _ := h.lease(t)
	if _, err := h.client.Delete(t.Context(), key); err != nil {
		t.Fatal(err)
	}
	err := h.wait(t)
	if ExitCode(err) != 1 || !strings.Contains(err.Error(), "lease lost") {
		t.Errorf("ended with %v, exit code %d", err, ExitCode(err))
	}
	if !strings.HasSuffix(h.dp.calls(), "close") {
		t.Errorf("data plane: %s", h.dp.calls())
	}
}

// A node that moves keeps its subnet, and with it its pods.
func TestNewAddressIsWrittenToTheLease(t *testing.T) {
	for _, lost := range []onLost{reacquireOnLost, exitOnLost} {
		t.Run(string(lost), func(t *testing.T) {
			h := newEtcdRig(t)
			h.options.onLost = lost
			h.put(t, configKey, goodConf)
			h.start(t)
			key, _ := h.lease(t)
			h.wires.become(moved(), nil)
			h.eventually(t, "etcd has the address", func() bool {
				r, err := h.client.Get(t.Context(), key)
				return err == nil && len(r.Kvs) == 1 && strings.Contains(string(r.Kvs[0].Value), `"PublicIP":"192.0.2.77"`)
			})
			h.becomesReady(t)
			if now, _ := h.lease(t); now != key {
				t.Errorf("the lease was %s and is %s", key, now)
			}
			if l := h.status(t).Lease; l.PublicIP != moved().PublicIP {
				t.Errorf("lease: %+v", l)
			}
		})
	}
}

// Which of a host's addresses is announced may change from run to run.
func TestNodeThatStartsUnderAnotherOfItsAddressesKeepsItsSubnet(t *testing.T) {
	h := newEtcdRig(t)
	h.put(t, configKey, goodConf)
	h.start(t)
	key, _ := h.lease(t)
	if err := h.stop(t); err != nil {
		t.Fatal(err)
	}
	next := newRig(t)
	next.options = h.options
	next.wires.link = moved()
	next.addrs = func() ([]netip.Addr, error) { return []netip.Addr{eth0.IPv4, moved().IPv4}, nil }
	next.start(t)
	if now, value := h.lease(t); now != key || !strings.Contains(value, moved().PublicIP.String()) {
		t.Errorf("had %s, has %s %s", key, now, value)
	}
}

// What is to be announced while etcd is away is announced when it is back.
func TestAddressThatChangesWhileEtcdIsAwayIsAnnouncedLater(t *testing.T) {
	h := newEtcdRig(t)
	h.put(t, configKey, goodConf)
	h.start(t)
	key, _ := h.lease(t)
	h.server.Kill()
	h.wires.become(moved(), nil)
	h.eventually(t, "not ready", func() bool { return strings.Contains(h.state.waiting(), "192.0.2.77") })
	h.dp.mu.Lock()
	at := h.dp.node.link.IPv4
	h.dp.mu.Unlock()
	if at != moved().IPv4 {
		t.Errorf("the data plane waits for etcd at %s", at)
	}
	back := eth0
	back.IPv4 = netip.MustParseAddr("192.0.2.88")
	back.PublicIP = back.IPv4
	h.wires.become(back, nil)
	h.eventually(t, "not ready", func() bool { return strings.Contains(h.state.waiting(), "192.0.2.88") })
	h.server.Restart(t)
	h.becomesReady(t)
	if _, value := h.lease(t); !strings.Contains(value, "192.0.2.88") {
		t.Errorf("%s is %s", key, value)
	}
}

func TestInterfaceGoneAndEtcdGoneEndAtASignal(t *testing.T) {
	h := newEtcdRig(t)
	h.put(t, configKey, goodConf)
	h.start(t)
	h.server.Kill()
	h.wires.become(moved(), nil)
	h.wires.become(underlay.Interface{}, errors.New("interface eth0 is gone"))
	h.eventually(t, "not ready", func() bool { return strings.Contains(h.state.waiting(), "is gone") })
	if err := h.stop(t); err != nil {
		t.Error(err)
	}
}
