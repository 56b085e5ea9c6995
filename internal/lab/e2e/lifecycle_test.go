package e2e

import (
	"context"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/twillnet/twill/internal/lab/netlab"
	"github.com/twillnet/twill/internal/lab/testkit"
)

// load is TCP both ways between pod-a and pod-b, at addr, that continues whatever
// happens to the daemons, until it is stopped or the test ends.
func (l *lab) load(addr netip.Addr) (stop func()) {
	l.t.Helper()
	before := l.txPackets(0)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = streams{flows: 4, up: 1 << 40, down: 1 << 40, until: ctx}.run(l.pod(0), l.pod(1), addr)
	}()
	stop = func() {
		cancel()
		<-ended
	}
	l.t.Cleanup(stop)
	testkit.Eventually(l.t, "traffic flows", func() bool { return l.txPackets(0) > before+1000 })
	return stop
}

// files lists what is in the directory of the daemon's files.
func (d *daemon) files() string {
	d.t.Helper()
	entries, err := os.ReadDir(filepath.Dir(d.subnetFile))
	if err != nil {
		d.t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return strings.Join(names, " ")
}

// pod-a ── host a ──────────── host b ── pod-b
//
//	SIGTERM
func TestSIGTERMEndsUnderTrafficAndLeavesSubnetEnvOnly(t *testing.T) {
	t.Parallel()
	for _, e := range []engine{offloadEngine, plainEngine} {
		t.Run(e.name, func(t *testing.T) {
			l := newLab(t, labOptions{engine: e, idle: true})
			d := l.daemons[0]
			before := netState(t, d.ns)
			l.start()
			testkit.Must(t, l.SetPodMTU(1500)) // as it was
			if netState(t, d.ns) == before {
				t.Fatal("a running daemon changes nothing")
			}
			env, err := os.ReadFile(d.subnetFile)
			testkit.Must(t, err)
			leases, err := os.ReadFile(l.leaseFile)
			testkit.Must(t, err)
			l.load(l.pod(1).Addr)

			if code := d.stop(syscall.SIGTERM); code != 0 {
				t.Errorf("exit code %d, want 0", code)
			}
			if after := netState(t, d.ns); after != before {
				t.Errorf("left behind: the host was\n%s\nand is\n%s", before, after)
			}
			if got := d.files(); got != "subnet.env" {
				t.Errorf("left behind: files %s, want subnet.env only", got)
			}
			for path, want := range map[string][]byte{d.subnetFile: env, l.leaseFile: leases} {
				if got, err := os.ReadFile(path); err != nil || string(got) != string(want) {
					t.Errorf("%s: %q, %v; want it unchanged", path, got, err)
				}
			}
			if log := d.stderr.String(); strings.Contains(log, "level=WARN") || strings.Contains(log, "level=ERROR") {
				t.Errorf("warnings of a daemon that was stopped:\n%s", log)
			}
		})
	}
}

func TestSIGINTEndsAsSIGTERMDoes(t *testing.T) {
	t.Parallel()
	l := newLab(t, labOptions{})
	if code := l.daemons[0].stop(syscall.SIGINT); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
}

func TestSecondSIGTERMLeavesNothingThatIsInTheWay(t *testing.T) {
	t.Parallel()
	l := newLab(t, labOptions{idle: true})
	d := l.daemons[0]
	before := netState(t, d.ns)
	l.start()
	testkit.Must(t, l.SetPodMTU(1500))
	stop := l.load(l.pod(1).Addr)
	testkit.Must(t, d.cmd.Process.Signal(syscall.SIGTERM))
	d.stop(syscall.SIGTERM) // with 0, or by the signal where the second one came in time
	if after := netState(t, d.ns); after != before {
		t.Errorf("left behind: the host was\n%s\nand is\n%s", before, after)
	}
	d.start()
	d.waitReady()
	stop() // a full queue loses pings
	testkit.Must(t, ping(l.pod(0), l.pod(1).Addr, 1472))
}

func TestSIGTERMWhileStartingEndsToo(t *testing.T) {
	t.Parallel()
	l := newLab(t, labOptions{idle: true, flags: []string{"--udp-gso=auto"}})
	d := l.daemons[0]
	before := netState(t, d.ns)
	stifleLoopback(t, d.ns) // it waits for packets that it sends to itself
	d.start()
	testkit.Eventually(t, "it creates its device", func() bool { return netState(t, d.ns) != before })
	if code := d.stop(syscall.SIGTERM); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
	if after := netState(t, d.ns); after != before {
		t.Errorf("left behind: the host was\n%s\nand is\n%s", before, after)
	}
	if got := d.files(); got != "" {
		t.Errorf("left behind: files %s", got)
	}
}

func TestRestartAfterSIGKILLWaitsForNothing(t *testing.T) {
	t.Parallel()
	for _, e := range []engine{offloadEngine, plainEngine} {
		t.Run(e.name, func(t *testing.T) {
			l := newLab(t, labOptions{engine: e})
			d := l.daemons[0]
			stop := l.load(l.pod(1).Addr)
			if code := d.stop(syscall.SIGKILL); code != -1 {
				t.Fatalf("exit code %d of a killed process", code)
			}
			if _, err := os.Stat(d.socket); err != nil {
				t.Fatalf("a killed daemon cannot have removed its socket: %v", err)
			}
			logged := len(d.stderr.String())
			d.start()
			d.waitReady()
			if log := d.stderr.String()[logged:]; strings.Contains(log, "level=WARN") || strings.Contains(log, "level=ERROR") {
				t.Errorf("it waited for something, or failed before it was ready:\n%s", log)
			}
			stop() // a full queue loses pings
			testkit.Must(t, ping(l.pod(0), l.pod(1).Addr, 1472))
			testkit.Must(t, ping(l.pod(1), l.pod(0).Addr6, 1472))
		})
	}
}

// A reader of subnet.env finds it before, during and after a restart.
func TestSubnetEnvStaysWhatItWasOverARestart(t *testing.T) {
	t.Parallel()
	l := newLab(t, labOptions{})
	d := l.daemons[0]
	before, err := os.ReadFile(d.subnetFile)
	testkit.Must(t, err)
	want := "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.1.1/24\n" +
		"FLANNEL_IPV6_NETWORK=fd00:10:5::/48\nFLANNEL_IPV6_SUBNET=fd00:10:5:1::1/64\n" +
		"FLANNEL_MTU=1472\nFLANNEL_IPMASQ=false\n"
	if string(before) != want {
		t.Errorf("got\n%s\nwant\n%s", before, want)
	}
	if fi, err := os.Stat(d.subnetFile); err != nil || fi.Mode() != fs.FileMode(0o644) {
		t.Errorf("mode %v, %v; want 0644", fi.Mode(), err)
	}
	d.stop(syscall.SIGTERM)
	d.start()
	d.waitReady()
	if after, err := os.ReadFile(d.subnetFile); err != nil || string(after) != want {
		t.Errorf("after a restart: %q, %v", after, err)
	}
}

// link returns a link of host number i.
func (l *lab) link(i int, name string) netlink.Link {
	l.t.Helper()
	link, err := l.Hosts[i].NS.Netlink().LinkByName(name)
	if err != nil {
		l.t.Fatal(err)
	}
	return link
}

// pod-a ── host a, flannel0 deleted ──────────── host b ── pod-b
func TestDeletedDeviceIsRecreated(t *testing.T) {
	t.Parallel()
	for _, e := range []engine{offloadEngine, plainEngine} {
		t.Run(e.name, func(t *testing.T) {
			l := newLab(t, labOptions{engine: e})
			d := l.daemons[0]
			state := func() string { // the new device comes after others that came after the old one
				return strings.Join(slices.Sorted(strings.Lines(netState(t, d.ns))), "")
			}
			before := state()
			c := l.talk()
			for i := range 3 {
				logged := len(d.stderr.String())
				was := l.link(0, "flannel0").Attrs().Index
				testkit.Must(t, d.ns.Netlink().LinkDel(l.link(0, "flannel0")))
				testkit.Eventually(t, "there is another flannel0, and pods talk", func() bool {
					link, err := d.ns.Netlink().LinkByName("flannel0")
					return err == nil && link.Attrs().Index != was && pingOnce(l.pod(0), l.pod(1).Addr) == nil
				})
				d.waitReady()
				c.goesOn(t)
				if n := strings.Count(d.stderr.String()[logged:], `msg="part of the data plane was removed`); n != 1 {
					t.Errorf("round %d: logged %d times, want once", i+1, n)
				}
			}
			if after := state(); after != before {
				t.Errorf("the host was\n%s\nand is\n%s", before, after)
			}
		})
	}
}

// pod-a ── host a, the tunnel's device renamed ──────────── host b ── pod-b
func TestRenamedDeviceGetsItsNameBack(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ device, config string }{
		{"flannel0", `{"Type": "udp"}`},
		{"flannel.1", `{"Type": "vxlan"}`},
	} {
		t.Run(tt.device, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, clusterOptions{backend: tt.config})
			c.runTwill()
			ns := c.nodes[0].NS
			nl := ns.Netlink()
			link, err := nl.LinkByName(tt.device)
			testkit.Must(t, err)
			before := netState(t, ns)
			for range 2 {
				testkit.Must(t, nl.LinkSetName(link, "renamed0"))
				testkit.Eventually(t, "the device has its name, and pods talk", func() bool {
					now, err := nl.LinkByIndex(link.Attrs().Index)
					return err == nil && now.Attrs().Name == tt.device && pingOnce(c.pod(0), c.pod(1).Addr) == nil
				})
			}
			if after := netState(t, ns); after != before {
				t.Errorf("the host was\n%s\nand is\n%s", before, after)
			}
		})
	}
}

// pod-a ── host a ──────────── host b ── pod-b
//
//	flannel0 or eth0 down, then up
func TestPodsTalkAgainWhenAnInterfaceIsUpAgain(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"flannel0", netlab.UnderlayLink} {
		for _, e := range []engine{offloadEngine, plainEngine} {
			t.Run(name+" "+e.name, func(t *testing.T) {
				t.Parallel()
				l := newLab(t, labOptions{engine: e})
				nl, link := l.Hosts[0].NS.Netlink(), l.link(0, name)
				before := netState(t, l.Hosts[0].NS)
				for range 3 {
					testkit.Must(t, nl.LinkSetDown(link))
					testkit.Must(t, nl.LinkSetUp(link))
				}
				l.talksAgain()
				if name != "flannel0" {
					return // whoever set up eth0 restores its IPv6 addresses
				}
				after := ""
				testkit.Eventually(t, "the host is as it was", func() bool {
					after = netState(t, l.Hosts[0].NS)
					return after == before
				}, func() string { return "it was\n" + before + "\nand is\n" + after })
				if log := l.daemons[0].stderr.String(); strings.Contains(log, "level=WARN") {
					t.Errorf("warnings:\n%s", log)
				}
			})
		}
	}
}

// talksAgain waits until pings of both families pass in both directions.
func (l *lab) talksAgain() {
	l.t.Helper()
	for i := range 2 {
		from, to := l.pod(i), l.pod(1-i)
		testkit.Eventually(l.t, "pings pass from "+from.NS.String(), func() bool {
			return pingOnce(from, to.Addr) == nil && pingOnce(from, to.Addr6) == nil
		})
	}
}

// The address of an interface may disappear and come back, for example with a DHCP client.
func TestPodsTalkAgainWhenTheUnderlayHasItsAddressAgain(t *testing.T) {
	t.Parallel()
	l := newLab(t, labOptions{})
	nl, eth0 := l.Hosts[0].NS.Netlink(), l.link(0, netlab.UnderlayLink)
	addrs, err := nl.AddrList(eth0, netlink.FAMILY_V4)
	testkit.Must(t, err)
	for _, a := range addrs {
		testkit.Must(t, nl.AddrDel(eth0, &a))
		if err := pingOnce(l.pod(0), l.pod(1).Addr); err == nil {
			t.Error("a ping passes without an address on the underlay")
		}
		testkit.Must(t, nl.AddrAdd(eth0, &a))
	}
	l.talksAgain()
	if l.daemons[0].ended() {
		t.Error("the daemon has exited")
	}
}
