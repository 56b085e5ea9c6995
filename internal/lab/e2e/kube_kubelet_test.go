package e2e

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/twillnet/twill/internal/connectivity"
	"github.com/twillnet/twill/internal/lab/kubetest"
	"github.com/twillnet/twill/internal/lab/netlab"
	"github.com/twillnet/twill/internal/lab/testkit"
	"github.com/twillnet/twill/internal/status"
)

// A cluster of real parts, and twill in it as a user installs it on nodes that have no
// plugins: its image imported, its manifest applied, for a network of two families.
//
//	pod-a ── node-a ─┬─ node-b ── pod-b      each: kubelet, containerd, the DaemonSet's pod,
//	                 │                       and kube-proxy, in one of its modes
//	                 └─ kube-apiserver, kube-scheduler, kube-controller-manager
func TestKubeletsRunPodsOnEachBackend(t *testing.T) {
	t.Parallel()
	l := newKubeletLab(t, 2)
	plain, err := l.kubectl("", "kustomize", "deploy/kubernetes/overlays/k3s")
	testkit.Must(t, err)
	boards, err := l.kubectl("", "kustomize", "deploy/kubernetes/overlays/k3s-boards")
	testkit.Must(t, err)
	configured := func(manifest, backend string) string {
		t.Helper()
		const was = `"Network": "10.244.0.0/16",`
		if !strings.Contains(manifest, was) || !strings.Contains(manifest, `"Type": "auto"`) {
			t.Fatalf("the manifest has no %s or no auto:\n%s", was, manifest)
		}
		m := strings.Replace(manifest, was, was+` "EnableIPv6": true, "IPv6Network": "fd00:10:244::/48",`, 1)
		return strings.Replace(m, `"Type": "auto"`, `"Type": "`+backend+`"`, 1)
	}
	giveVXLAN := l.takeVXLAN(1)
	l.apply(configured(plain, "auto"))
	l.rolledOut()
	for _, k := range l.nodes {
		l.eventually(k.name+" is ready", func() bool {
			n := l.Node(k.name)
			return n.Condition("Ready").Status == "True" && n.Condition("NetworkUnavailable").Reason == "FlannelIsUp"
		}, k.log)
	}
	for command, want := range map[string]string{"leases": "(this node)", "config get": "fd00:10:244::/48", "doctor": "2 leases are valid"} {
		if out := l.inTwill(t, "node-a", append([]string{"twill"}, strings.Fields(command)...)...); !strings.Contains(testkit.Unwrapped(out), want) {
			t.Errorf("twill %s in the pod does not print %q but\n%s", command, want, out)
		}
	}
	t.Run("twill connectivity by kubectl", l.connects)
	for i, k := range l.nodes {
		if got, want := k.proxyMode(), proxyModes[i]; got != want {
			t.Errorf("kube-proxy of %s is in mode %q, want %s", k.name, got, want)
		}
	}
	serviceA, serviceB := l.expose("pod-a"), l.expose("pod-b")
	for _, tt := range []struct {
		name, backend string
		mtu           [2]int // of the pods of each node; VXLAN over IPv6 costs 70 bytes
		device        string
	}{
		{"auto, node-b has no VXLAN", "auto", [2]int{1430, 1472}, "flannel0"},
		{"udp", "udp", [2]int{1472, 1472}, "flannel0"},
		{"host-gw", "host-gw", [2]int{1500, 1500}, netlab.UnderlayLink},
		{"auto", "auto", [2]int{1430, 1430}, "flannel.1"},
		{"vxlan", "vxlan", [2]int{1430, 1430}, "flannel.1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.backend == "host-gw" {
				giveVXLAN()
			}
			l.apply(configured(plain, tt.backend))
			l.sendThrough(t, tt.device)
			for i, k := range l.nodes { // a pod keeps its initial MTU
				testkit.Eventually(t, fmt.Sprintf("the MTU of %s is %d", k.name, tt.mtu[i]), func() bool { return k.mtu() == tt.mtu[i] })
			}
			a, b := l.pod(0, "pod-a"), l.pod(1, "pod-b")
			defer l.remove("pod-a", "pod-b")
			for _, p := range []*netlab.Pod{a, b} {
				if lo, err := p.NS.Netlink().LinkByName("lo"); err != nil || lo.Attrs().Flags&net.FlagUp == 0 {
					t.Errorf("the plugin loopback has not set up %s: %v", p.NS, err)
				}
			}
			for _, way := range [][2]*netlab.Pod{{a, b}, {b, a}} {
				for _, addr := range []netip.Addr{way[1].Addr, way[1].Addr6} {
					l.talk(t, way[0], way[1], addr, min(l.nodes[0].mtu(), l.nodes[1].mtu()))
				}
			}
			l.reaches(t, a, b, serviceB) // node-a translates
			l.reaches(t, b, a, serviceA)
		})
	}
	t.Run("fifty pods leave nothing", func(t *testing.T) { l.leavesNothing(t, 0) })
	t.Run("a memory limit for boards", func(t *testing.T) {
		l.replaces(t, configured(boards, "udp"))
		for _, k := range l.nodes {
			out := l.inTwill(t, k.name, "sh", "-c", "grep -E 'VmRSS|VmHWM|RssAnon' /proc/1/status; cd /sys/fs/cgroup; cat memory.max memory.peak memory/memory.limit_in_bytes memory/memory.max_usage_in_bytes 2>/dev/null || true")
			t.Logf("%s: %s", k.name, strings.Join(strings.Fields(out), " "))
			if !strings.Contains(out, fmt.Sprint(128<<20)) {
				t.Errorf("%s has a limit other than 128 MiB:\n%s", k.name, out)
			}
		}
		out, err := l.kubectl("", "-n", "kube-flannel", "get", "pods", "-o=jsonpath={.items[*].status.containerStatuses[*].lastState}")
		if err != nil || strings.Contains(out, "OOMKilled") {
			t.Errorf("a daemon was killed for lack of memory: %s, %v", out, err)
		}
	})
	t.Run("the kernel path", func(t *testing.T) {
		kernel, err := l.kubectl("", "kustomize", "deploy/kubernetes/overlays/kernel-path")
		testkit.Must(t, err)
		l.carriedByTheKernel(t, configured(kernel, "udp"))
	})
	t.Run("flannel's own manifest with another image", func(t *testing.T) {
		l.replaces(t, ofFlannel(t, imageName))
	})
}

// connects checks that twill connectivity, on a host outside of the cluster, tests all paths
// between the nodes, through kubectl and an administrator's kubeconfig.
func (l *kubeletLab) connects(t *testing.T) {
	testkit.Must(t, build("twill", "./cmd/twill"))
	var r connectivity.Report
	state := ""
	testkit.Eventually(t, "all tests pass", func() bool {
		cmd := l.Hosts[len(l.nodes)].NS.Command(t.Context(), bin("twill"), "connectivity", "--json", "--socket=/nonexistent", "-W=10s",
			"--via=kubectl", "--kubeconfig-file="+l.admin)
		cmd.Env = append(os.Environ(), "HOME="+t.TempDir(), "PATH="+filepath.Dir(kubetest.Binary(t, "kubectl"))+":"+os.Getenv("PATH"))
		out, err := cmd.Output()
		r, state = connectivity.Report{}, fmt.Sprintf("%v: %s", err, out)
		if json.Unmarshal(out, &r) != nil {
			return false
		}
		for _, one := range r.Results {
			for _, o := range one.Tests {
				if !o.OK {
					return false
				}
			}
		}
		return len(r.Results) > 0
	}, func() string { return state })
	ways := make(map[string]int)
	for _, one := range r.Results {
		for _, o := range one.Tests {
			ways[fmt.Sprintf("%s, IPv6 %v", o.Test, one.Subnet.Addr().Is6())]++
		}
	}
	for _, test := range []string{"ping", "mtu", "tcp", "udp"} {
		for _, family := range []bool{false, true} {
			if n := ways[fmt.Sprintf("%s, IPv6 %v", test, family)]; n != 2 {
				t.Errorf("%s, IPv6 %v: %d paths were tested, want 2: %v", test, family, n, ways)
			}
		}
	}
}

// carriedByTheKernel applies a manifest with the kernel path, and checks that the kernel
// carries the packets of pods, also while there is no pod of twill, until the manifest
// turns it off.
func (l *kubeletLab) carriedByTheKernel(t *testing.T, manifest string) {
	t.Helper()
	l.apply(manifest)
	l.rolledOut()
	a, b := l.pod(0, "pod-a"), l.pod(1, "pod-b")
	defer l.remove("pod-a", "pod-b")
	ask := func(k *kubelet) (doc status.Document) {
		t.Helper()
		testkit.Must(t, json.Unmarshal([]byte(l.inTwill(t, k.name, "twill", "status", "--json")), &doc))
		return doc
	}
	eachPeer := func(kernel bool) {
		t.Helper()
		for _, k := range l.nodes {
			l.eventually(fmt.Sprintf("the kernel of %s carries packets: %v", k.name, kernel), func() bool {
				doc := ask(k)
				return doc.Dataplane != nil && len(doc.Dataplane.Peers) == 1 && doc.Dataplane.Peers[0].Kernel == kernel
			}, func() string { return l.inTwill(t, k.name, "twill", "status") })
		}
	}
	eachPeer(true)
	for _, way := range [][2]*netlab.Pod{{a, b}, {b, a}} {
		for _, addr := range []netip.Addr{way[1].Addr, way[1].Addr6} {
			l.talk(t, way[0], way[1], addr, l.nodes[0].mtu())
		}
	}
	for _, k := range l.nodes {
		l.eventually("the kernel of "+k.name+" counts packets both ways", func() bool {
			doc := ask(k)
			tx, rx := kernelPackets(&doc)
			return tx > 0 && rx > 0
		}, func() string { return l.inTwill(t, k.name, "twill", "status") })
	}
	stream := startStream(t, a, b)
	l.apply(strings.Replace(manifest, "hostNetwork: true", "hostNetwork: true\n      nodeSelector: {nowhere: \"true\"}", 1))
	l.eventually("there is no pod of twill", func() bool {
		out, err := l.kubectl("", "-n", "kube-flannel", "get", "pods", "--output=name")
		testkit.Must(t, err)
		return !strings.Contains(out, "pod/")
	})
	stream.passes(t, "without a pod of twill")
	const on = "name: FLANNELD_KERNEL_PATH\n          value: auto"
	if !strings.Contains(manifest, on) {
		t.Fatalf("the manifest has no variable FLANNELD_KERNEL_PATH:\n%s", manifest)
	}
	l.apply(strings.Replace(manifest, on, strings.Replace(on, "auto", `"off"`, 1), 1))
	l.rolledOut()
	eachPeer(false)
	stream.passes(t, "after the change back")
	stream.stop(t)
}

// ofFlannel is the manifest of the release of flannel that tests compare with, with an
// image in the place of its two.
func ofFlannel(t *testing.T, image string) string {
	t.Helper()
	cmd := exec.Command("go", "mod", "download", "-json", "github.com/flannel-io/flannel")
	cmd.Dir = filepath.Join("..", "..", "..", "bench", "peers", "flannel")
	out, err := cmd.Output()
	testkit.Must(t, err)
	var module struct{ Dir string }
	testkit.Must(t, json.Unmarshal(out, &module))
	text := textOf(t, filepath.Join(module.Dir, "Documentation", "kube-flannel.yml"))
	images := regexp.MustCompile(`image: .*`)
	if n := len(images.FindAllString(text, -1)); n != 3 {
		t.Fatalf("flannel's manifest has %d images, want 3:\n%s", n, text)
	}
	return images.ReplaceAllString(text, "image: "+image)
}

// leavesNothing makes and deletes fifty pods on a node, ten at a time as a Deployment
// does, and checks what the plugins keep.
func (l *kubeletLab) leavesNothing(t *testing.T, i int) {
	t.Helper()
	const rounds, atOnce = 5, 10
	for round := range rounds {
		var names []string
		for n := range atOnce {
			names = append(names, l.create(i, fmt.Sprintf("pod-%d-%d", round, n)))
		}
		for _, name := range names {
			l.started(i, name)
		}
		l.remove(names...)
	}
	// The kubelet removes the object of a pod before its sandbox.
	var left []string
	testkit.Eventually(t, "nothing is left in /var/lib/cni", func() bool {
		left = cniState(t, l.nodes[i].path("/var/lib/cni"))
		return len(left) == 0
	}, func() string { return strings.Join(left, " ") })
}

// replaces applies a manifest, which puts another pod of twill on each node in turn,
// while a stream passes between two pods that no manifest changes.
func (l *kubeletLab) replaces(t *testing.T, manifest string) {
	t.Helper()
	stream := startStream(t, l.pod(0, "pod-a"), l.pod(1, "pod-b"))
	defer l.remove("pod-a", "pod-b")
	stream.passes(t, "before")
	l.apply(manifest)
	l.rolledOut()
	stream.passes(t, "after the change")
	stream.stop(t)
}

// inTwill runs a command in the container of twill on a node.
func (l *kubeletLab) inTwill(t *testing.T, node string, command ...string) string {
	t.Helper()
	name, err := l.kubectl("", "-n", "kube-flannel", "get", "pods", "--field-selector=spec.nodeName="+node, "-o=jsonpath={.items[0].metadata.name}")
	testkit.Must(t, err)
	out, err := l.kubectl("", append([]string{"-n", "kube-flannel", "exec", name, "-c", "kube-flannel", "--"}, command...)...)
	testkit.Must(t, err)
	return out
}

// talk checks that a pod reaches another with packets of size bytes, by TCP and by UDP.
func (l *kubeletLab) talk(t *testing.T, from, to *netlab.Pod, addr netip.Addr, size int) {
	t.Helper()
	testkit.Eventually(t, fmt.Sprintf("%s reaches %s", from.Addr, addr), func() bool { return pingOnce(from, addr) == nil })
	if err := ping(from, addr, size); err != nil {
		t.Errorf("ping of %d bytes: %v", size, err)
	}
	if err := (streams{flows: 2, up: 4 << 20, down: 4 << 20}).run(from, to, addr); err != nil {
		t.Errorf("TCP to %s: %v", addr, err)
	}
	if err := (datagrams{flows: 2, count: 200, window: 4, sizes: []int{8, 1200}}).run(from, to, addr); err != nil {
		t.Errorf("UDP to %s: %v", addr, err)
	}
}

// mtu is that of the node's subnet.env; 0 if there is none.
func (k *kubelet) mtu() (mtu int) {
	text, _ := os.ReadFile(k.path("/run/flannel/subnet.env"))
	_, value, _ := strings.Cut(string(text), "FLANNEL_MTU=")
	_, _ = fmt.Sscan(value, &mtu)
	return mtu
}

// takeVXLAN makes the kernel refuse VXLAN to node number i, where twill is not running
// yet, until the function that it returns is called: a program occupies the port.
func (l *kubeletLab) takeVXLAN(i int) (give func()) {
	l.t.Helper()
	conn, err := listenUDP(l.Hosts[i].NS, netip.MustParseAddrPort("[::]:8472"))
	testkit.Must(l.t, err)
	l.t.Cleanup(func() { conn.Close() })
	return func() { conn.Close() }
}

// sendThrough waits until the nodes send to each other's pods through a device.
func (l *kubeletLab) sendThrough(t *testing.T, device string) {
	t.Helper()
	for i, k := range l.nodes {
		for _, cidr := range l.Node(l.nodes[1-i].name).Spec.PodCIDRs {
			to := netip.MustParsePrefix(cidr).Addr().Next()
			found := ""
			testkit.Eventually(t, fmt.Sprintf("%s sends to %s through %s", k.name, cidr, device), func() bool {
				routes, err := k.host.NS.Netlink().RouteGet(to.AsSlice())
				if err != nil || len(routes) == 0 {
					return false
				}
				link, err := k.host.NS.Netlink().LinkByIndex(routes[0].LinkIndex)
				if err != nil {
					return false
				}
				found = link.Attrs().Name
				return found == device || device == "flannel.1" && found == "flannel-v6.1"
			}, func() string { return "it sends through " + found })
		}
	}
}
