package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twillnet/twill/internal/lab/netlab"
	"github.com/twillnet/twill/internal/lab/testkit"
)

// A node and the plugins of its image; a subnet file in the daemon's place.
//
//	cnitool ─► flannel ─► bridge ─► host-local
//	        └► portmap
const (
	dualEnv = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.3.1/24\n" +
		"FLANNEL_IPV6_NETWORK=fd00:244::/48\nFLANNEL_IPV6_SUBNET=fd00:244:0:3::1/64\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"
	gateway4, gateway6 = "10.244.3.1", "fd00:244:0:3::1"
)

func newLoneCNINode(t testing.TB, version string) (n *cniNode, subnetFile string) {
	t.Helper()
	ns, err := netlab.New("node")
	testkit.Must(t, err)
	t.Cleanup(func() { testkit.Must(t, ns.Close()) })
	subnetFile = filepath.Join(scratchDir(t), "subnet.env")
	testkit.Must(t, os.WriteFile(subnetFile, []byte(dualEnv), 0o644))
	return newCNINode(t, ns, version, subnetFile), subnetFile
}

func TestCNIPodReachesItsNodeAndOtherPods(t *testing.T) {
	t.Parallel()
	n, _ := newLoneCNINode(t, "1.0.0")
	a, b := n.pod(), n.pod()
	for _, to := range []netip.Addr{netip.MustParseAddr(gateway4), netip.MustParseAddr(gateway6), b.Addr, b.Addr6} {
		if err := ping(&a.Pod, to, 1450); err != nil {
			t.Error(err)
		}
	}
	link, err := a.NS.Netlink().LinkByName("eth0")
	testkit.Must(t, err)
	if mtu := link.Attrs().MTU; mtu != 1450 {
		t.Errorf("the pod's MTU is %d, want that of the subnet file", mtu)
	}
	_, err = n.cnitool("check", a.name)
	testkit.Must(t, err)
}

func TestCNIHostPortLeadsToThePod(t *testing.T) {
	t.Parallel()
	n, _ := newLoneCNINode(t, "0.3.1") // flannel's manifest has this version
	before := n.rules()
	ports := `CAP_ARGS={"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}`
	p, err := n.newPod(ports)
	testkit.Must(t, err)
	l, err := p.NS.Listen("tcp", "0.0.0.0:80")
	testkit.Must(t, err)
	defer l.Close()
	ctx, cancel := context.WithTimeout(context.Background(), testkit.Patience)
	defer cancel()
	c, err := n.pod().NS.Dial(ctx, "tcp", net.JoinHostPort(gateway4, "8080"))
	if err != nil {
		t.Fatalf("%v\n%s", err, n.rules())
	}
	c.Close()
	testkit.Must(t, p.delete(ports))
	if after := n.rules(); strings.Contains(after, "8080") || strings.Contains(before, "8080") {
		t.Errorf("the port is still in the rules:\n%s", after)
	}
}

// Each pod has a name and a namespace of its own, as under the kubelet.
func TestCNIPodMadeFiftyTimesLeavesNothing(t *testing.T) {
	t.Parallel()
	n, _ := newLoneCNINode(t, "1.0.0")
	var rules string
	var addrs []netip.Addr
	for i := range 50 {
		p, err := n.newPod()
		testkit.Must(t, err)
		testkit.Must(t, p.delete())
		addrs = append(addrs, p.Addr)
		if i == 0 {
			rules = n.rules() // bridge and portmap have made their chains
		}
	}
	if state := n.state(); len(state) > 0 {
		t.Errorf("left in /var/lib/cni: %q", state)
	}
	if links := n.links(); len(links) > 0 {
		t.Errorf("left on the bridge: %q", links)
	}
	if now := n.rules(); now != rules {
		t.Errorf("rules after the first pod\n%s\nand after the last\n%s", rules, now)
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	if unique := slices.Compact(slices.Clone(addrs)); len(unique) != 50 {
		t.Errorf("host-local assigned %d addresses to 50 pods, one after the other: %v", len(unique), addrs)
	}
}

func TestCNIFiftyPodsAtOnce(t *testing.T) {
	t.Parallel()
	n, _ := newLoneCNINode(t, "1.0.0")
	pods := make([]*cniPod, 50)
	atOnce := func(f func(i int) error) {
		t.Helper()
		errs := make([]error, len(pods))
		var all sync.WaitGroup
		for i := range pods {
			all.Go(func() { errs[i] = f(i) })
		}
		all.Wait()
		testkit.Must(t, errors.Join(errs...))
	}
	atOnce(func(i int) (err error) {
		pods[i], err = n.newPod()
		return err
	})
	seen := map[netip.Addr]bool{}
	for _, p := range pods {
		if !p.Addr.Is4() || !p.Addr6.Is6() || seen[p.Addr] || seen[p.Addr6] {
			t.Errorf("%s has %v and %v, another pod's or none", p.name, p.Addr, p.Addr6)
		}
		seen[p.Addr], seen[p.Addr6] = true, true
	}
	if err := ping(&pods[0].Pod, pods[49].Addr, 1450); err != nil {
		t.Error(err)
	}
	atOnce(func(i int) error { return pods[i].delete() })
	if state := n.state(); len(state) > 0 {
		t.Errorf("left in /var/lib/cni: %q", state)
	}
}

// Unlike with the stock plugin, a DEL that failed can be repeated with effect.
func TestCNIAddressIsFreedByTheDelThatSucceeds(t *testing.T) {
	t.Parallel()
	n, _ := newLoneCNINode(t, "1.0.0")
	p, err := n.newPod()
	testkit.Must(t, err)
	address := filepath.Join(n.lib, "cni", "networks", "cbr0", p.Addr.String())
	if _, err := os.Stat(address); err != nil {
		t.Fatal(err)
	}
	all := n.path
	n.path = strings.Join([]string{binDir, emptyBridge(t)}, ":")
	if _, err := n.cnitool("del", p.name); err == nil || !strings.Contains(err.Error(), "the disk is on fire") {
		t.Fatalf("DEL with a broken delegate: %v", err)
	}
	n.path = all
	if _, err := os.Stat(address); err != nil {
		t.Fatalf("the test is pointless: %v", err)
	}
	testkit.Must(t, p.delete())
	if state := n.state(); len(state) > 0 {
		t.Errorf("left in /var/lib/cni: %q", state)
	}
}

// emptyBridge is a directory with a plugin bridge that only fails, and the portmap
// that does nothing.
func emptyBridge(t testing.TB) string {
	t.Helper()
	dir := scratchDir(t)
	broken := "#!/bin/sh\necho '{\"code\": 999, \"msg\": \"the disk is on fire\"}'\nexit 1\n"
	testkit.Must(t, os.WriteFile(filepath.Join(dir, "bridge"), []byte(broken), 0o755))
	testkit.Must(t, os.WriteFile(filepath.Join(dir, "portmap"), []byte("#!/bin/sh\n"), 0o755))
	return dir
}

func TestCNICheckFindsWhatAPodHasLost(t *testing.T) {
	t.Parallel()
	n, subnetFile := newLoneCNINode(t, "1.0.0")
	p := n.pod()
	_, err := n.cnitool("check", p.name)
	testkit.Must(t, err)

	moved := strings.ReplaceAll(dualEnv, "10.244.3.1", "10.244.4.1")
	testkit.Must(t, os.WriteFile(subnetFile, []byte(moved), 0o644))
	if _, err := n.cnitool("check", p.name); err == nil || !strings.Contains(err.Error(), "10.244.3.0/24") {
		t.Errorf("the node has another subnet: CHECK says %v", err)
	}
	testkit.Must(t, os.WriteFile(subnetFile, []byte(dualEnv), 0o644))

	link, err := p.NS.Netlink().LinkByName("eth0")
	testkit.Must(t, err)
	testkit.Must(t, p.NS.Netlink().LinkDel(link))
	if _, err := n.cnitool("check", p.name); err == nil || !strings.Contains(err.Error(), "eth0") {
		t.Errorf("the interface is gone: CHECK says %v", err)
	}
}

func TestCNIStatusFollowsTheSubnetFile(t *testing.T) {
	t.Parallel()
	n, subnetFile := newLoneCNINode(t, "1.1.0")
	_, err := n.cnitool("status", "any")
	testkit.Must(t, err)
	testkit.Must(t, os.Remove(subnetFile))
	if _, err := n.cnitool("status", "any"); err == nil || !strings.Contains(err.Error(), subnetFile) {
		t.Errorf("without a subnet file STATUS says %v", err)
	}
	if _, err := n.newPod(); err == nil || !strings.Contains(err.Error(), subnetFile) {
		t.Errorf("without a subnet file ADD says %v", err)
	}
	if state := n.state(); len(state) > 0 {
		t.Errorf("left in /var/lib/cni by the ADD that failed: %q", state)
	}
}

// The runtime lost its cache, and with it its record of the pod.
func TestCNIGCFreesWhatTheRuntimeForgot(t *testing.T) {
	t.Parallel()
	n, _ := newLoneCNINode(t, "1.1.0")
	p, err := n.newPod()
	testkit.Must(t, err)
	testkit.Must(t, p.NS.Close())
	testkit.Must(t, os.RemoveAll(filepath.Join(n.lib, "cni", "results")))
	if state := n.state(); len(state) == 0 {
		t.Fatal("the test is pointless: nothing is kept of the pod")
	}
	_, err = n.cnitool("gc", "any")
	testkit.Must(t, err)
	if state := n.state(); len(state) > 0 {
		t.Errorf("left in /var/lib/cni: %q", state)
	}
}

// Pods attached by the plugin with what twilld has written, on two nodes.
func TestCNIPodsOfTwoNodesTalkAtFullMTU(t *testing.T) {
	t.Parallel()
	l := newLab(t, labOptions{})
	var pods [2]*cniPod
	for i, h := range l.Hosts {
		// The laboratory's own pod has the address that host-local gives first.
		own, err := h.Pods[0].NS.Netlink().LinkByName("eth0")
		testkit.Must(t, err)
		testkit.Must(t, h.Pods[0].NS.Netlink().LinkSetDown(own))
		pods[i] = newCNINode(t, h.NS, "1.0.0", l.daemons[i].subnetFile).pod()
	}
	for _, way := range [][2]*cniPod{{pods[0], pods[1]}, {pods[1], pods[0]}} {
		for _, to := range []netip.Addr{way[1].Addr, way[1].Addr6} {
			if !to.IsValid() {
				continue
			}
			testkit.Eventually(t, fmt.Sprintf("%s reaches %s", way[0].Addr, to), func() bool { return acquaint(&way[0].Pod, to) == nil })
			if err := pingWithin(5*time.Second, &way[0].Pod, to, l.daemons[0].podMTU()); err != nil {
				t.Error(err)
			}
			if err := (streams{flows: 2, up: 4 << 20, down: 4 << 20}).run(&way[0].Pod, &way[1].Pod, to); err != nil {
				t.Error(err)
			}
		}
	}
}
