package e2e

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/twillnet/twill/internal/lab/kubetest"
	"github.com/twillnet/twill/internal/lab/netlab"
	"github.com/twillnet/twill/internal/lab/netlab/netlabtest"
	"github.com/twillnet/twill/internal/lab/testkit"
)

// kubeletLab is a cluster of real parts: a control plane on the last host, and a
// containerd with a kubelet and a kube-proxy on each other. Pods are attached by what the pods of
// flannel's DaemonSet install.
type kubeletLab struct {
	*netlab.Topology
	*kubetest.Cluster
	t     *testing.T
	nodes []*kubelet
	admin string // path of the administrator's kubeconfig
}

// kubelet is a node. What it has below /etc, /opt, /run and /var is its own.
type kubelet struct {
	t    *testing.T
	host *netlab.Host
	name string // of its Node
	unit *netlab.Cmd
}

// podImage is the image of the pods of tests.
const podImage = "localhost/pod:test"

// newKubeletLab starts a cluster with n nodes, whose pods have addresses of both
// families.
func newKubeletLab(t *testing.T, n int) *kubeletLab {
	t.Helper()
	l := &kubeletLab{Topology: netlabtest.New(t, netlab.Options{Hosts: n + 1}), t: t}
	plane := l.Hosts[n]
	l.Cluster = kubetest.Start(t, kubetest.Options{
		Host: plane.Addr.String(), ClusterCIDR: clusterCIDR, Workloads: true,
		Command: func(name string, args ...string) (*exec.Cmd, func() error) {
			c := plane.NS.Command(context.Background(), name, args...)
			return c.Cmd, c.Start
		},
		Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
			return plane.NS.Dial(ctx, network, addr)
		},
	})
	l.admin = l.Kubeconfig("admin")
	image := writePodImage(t)
	t.Cleanup(func() { removeCgroups(t, "/k8s.io") }) // of all nodes, which have ended then
	for i, h := range l.Hosts[:n] {
		// The bridge of pods is left to the CNI plugin.
		bridge, err := h.NS.Netlink().LinkByName("cni0")
		testkit.Must(t, err)
		testkit.Must(t, h.NS.Netlink().LinkDel(bridge))
		l.nodes = append(l.nodes, l.join(h, image, proxyModes[i%len(proxyModes)]))
	}
	for _, k := range l.nodes {
		l.eventually(k.name+" registers", func() bool { return l.exists("/api/v1/nodes/" + k.name) }, k.log)
	}
	return l
}

// exists reports whether the API has an object.
func (l *kubeletLab) exists(path string) bool {
	return l.Try(http.MethodGet, path, nil, nil) == nil
}

// eventually is that of testkit, for what takes a scheduler, a kubelet, a runtime and
// probes that begin after five seconds.
func (l *kubeletLab) eventually(what string, holds func() bool, state ...func() string) {
	l.t.Helper()
	if testkit.Within(3*testkit.Patience, holds) {
		return
	}
	for _, s := range state {
		what += "\n" + s()
	}
	l.t.Fatalf("not within %s: %s", 3*testkit.Patience, what)
}

// proxyModes are those of kube-proxy; the nodes get them in turn.
var proxyModes = []string{"iptables", "nftables"}

// clusterCIDR are the networks of the pods.
const clusterCIDR = "10.244.0.0/16,fd00:10:244::/48"

// join starts containerd, a kubelet and a kube-proxy on a host.
func (l *kubeletLab) join(h *netlab.Host, image, proxyMode string) *kubelet {
	l.t.Helper()
	k := &kubelet{t: l.t, host: h, name: "node-" + h.Letter}
	plane := l.Hosts[len(l.Hosts)-1]
	state := scratchDir(l.t)
	write := func(name, text string) {
		testkit.Must(l.t, os.WriteFile(filepath.Join(state, name), []byte(text), 0o644))
	}
	write("containerd.toml", fmt.Sprintf(`version = 2
root = %[1]q
state = "/run/containerd"
[grpc]
address = "/run/containerd/sock"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = %[2]q
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "native"
`, state+"/root", podImage))
	write("kubelet.yaml", `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
containerRuntimeEndpoint: unix:///run/containerd/sock
cgroupDriver: cgroupfs
cgroupsPerQOS: false
enforceNodeAllocatable: []
failCgroupV1: false
failSwapOn: false
resolvConf: ""
syncFrequency: 1s
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
healthzPort: 0
imageGCHighThresholdPercent: 100
evictionHard: {memory.available: "0%", nodefs.available: "0%", nodefs.inodesFree: "0%", imagefs.available: "0%"}
`)
	// Limits of conntrack are the machine's, so kube-proxy leaves them alone.
	write("proxy.yaml", fmt.Sprintf(`apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
clientConnection: {kubeconfig: %q}
hostnameOverride: %q
clusterCIDR: %q
mode: %s
conntrack: {maxPerCore: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
`, l.admin, k.name, clusterCIDR, proxyMode))
	// A hybrid host's second tree of control groups would mislead containerd. The
	// kubelet sets sysctls of the machine, and gets copies to set. BPF programs are pinned
	// where those of no other node are, in a mount that containers may share.
	write("unit.sh", fmt.Sprintf(`set -e
		cd %[1]s
		if mountpoint -q /sys/fs/cgroup/unified; then umount /sys/fs/cgroup/unified; fi
		mount -t tmpfs none /run
		for d in etc opt var; do
			mkdir -p over/$d work/$d
			mount -t overlay none -o lowerdir=/$d,upperdir=over/$d,workdir=work/$d /$d
		done
		for f in vm/overcommit_memory vm/panic_on_oom kernel/panic kernel/panic_on_oops kernel/keys/root_maxkeys kernel/keys/root_maxbytes; do
			cp /proc/sys/$f ${f##*/}
			mount --bind ${f##*/} /proc/sys/$f
		done
		if mountpoint -q /sys/fs/bpf; then umount /sys/fs/bpf; fi
		mount -t bpf none /sys/fs/bpf && mount --make-shared /sys/fs/bpf
		ip route add default via %[10]s && ip -6 route add default via %[11]s
		LD_LIBRARY_PATH=%[2]s/lib containerd --config containerd.toml &
		until ctr --address /run/containerd/sock version; do kill -0 $!; sleep 0.1; done >/dev/null 2>&1
		for i in %[3]s %[4]s; do
			ctr --address /run/containerd/sock --namespace k8s.io images import --snapshotter native $i
		done
		%[12]s --config=proxy.yaml &
		exec %[5]s --config=kubelet.yaml --kubeconfig=%[6]s --hostname-override=%[7]s --node-ip=%[8]s,%[9]s`,
		state, dockerDir(l.t), imageArchive(l.t), image, kubetest.Binary(l.t, "kubelet"), l.admin, k.name, h.Addr, h.Addr6, plane.Addr, plane.Addr6,
		kubetest.Binary(l.t, "kube-proxy")))
	out, err := os.Create(filepath.Join(state, "log"))
	testkit.Must(l.t, err)
	l.t.Cleanup(func() { out.Close() })
	k.unit = h.NS.Command(context.Background(), "unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", filepath.Join(state, "unit.sh"))
	k.unit.Env = append(os.Environ(), "PATH="+filepath.Join(dockerDir(l.t), "bin")+":"+os.Getenv("PATH"))
	k.unit.Stdout, k.unit.Stderr = out, out
	testkit.Must(l.t, k.unit.Start())
	ended := make(chan struct{})
	go func() {
		_ = k.unit.Wait()
		close(ended)
	}()
	l.t.Cleanup(func() {
		if l.t.Failed() {
			l.t.Logf("log of %s:\n%s", k.name, k.log())
		}
		_ = k.unit.Process.Kill()
		<-ended
	})
	return k
}

// path returns where a file of the node is for this process.
func (k *kubelet) path(name string) string {
	return fmt.Sprintf("/proc/%d/root%s", k.unit.Process.Pid, name)
}

// log returns the end of what containerd and the kubelet have logged.
func (k *kubelet) log() string {
	text, err := os.ReadFile(k.unit.Stdout.(*os.File).Name())
	if err != nil {
		return err.Error()
	}
	return string(text[max(0, len(text)-16<<10):])
}

// kubectl runs kubectl as the administrator on the control plane's host, with a text
// as input, and returns what it has printed.
func (l *kubeletLab) kubectl(input string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), testkit.Patience)
	defer cancel()
	cmd := l.Hosts[len(l.nodes)].NS.Command(ctx, kubetest.Binary(l.t, "kubectl"), args...)
	cmd.Dir = filepath.Join("..", "..", "..")
	cmd.Env = append(os.Environ(), "KUBECONFIG="+l.admin, "HOME="+l.t.TempDir())
	cmd.Stdin = strings.NewReader(input)
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("kubectl %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return string(out), err
}

// apply creates or changes the objects of a manifest.
func (l *kubeletLab) apply(manifest string) {
	l.t.Helper()
	_, err := l.kubectl(manifest, "apply", "-f", "-")
	testkit.Must(l.t, err)
}

// rolledOut waits until the pods of the DaemonSet that is in force are ready on all
// nodes.
func (l *kubeletLab) rolledOut() {
	l.t.Helper()
	l.eventually("the pods of the DaemonSet are ready", func() bool {
		var ds struct {
			Metadata struct{ Generation int64 }
			Status   struct {
				ObservedGeneration                                          int64
				DesiredNumberScheduled, UpdatedNumberScheduled, NumberReady int
			}
		}
		l.Do(http.MethodGet, "/apis/apps/v1/namespaces/kube-flannel/daemonsets/kube-flannel-ds", nil, &ds)
		s := ds.Status
		return s.ObservedGeneration == ds.Metadata.Generation && s.DesiredNumberScheduled == len(l.nodes) &&
			s.UpdatedNumberScheduled == len(l.nodes) && s.NumberReady == len(l.nodes)
	}, func() string {
		out, err := l.kubectl("", "-n", "kube-flannel", "describe", "pods")
		logs, _ := l.kubectl("", "-n", "kube-flannel", "logs", "--all-containers", "--prefix", "--selector=app=flannel", "--tail=20")
		return fmt.Sprint(out, logs, err)
	})
}

// pod starts a pod on node number i and waits until it runs.
func (l *kubeletLab) pod(i int, name string) *netlab.Pod {
	l.t.Helper()
	return l.started(i, l.create(i, name))
}

const podsPath = "/api/v1/namespaces/default/pods"

// create makes the object of a pod.
func (l *kubeletLab) create(i int, name string) string {
	l.t.Helper()
	// The service account comes with a controller.
	l.eventually("pods may be created", func() bool {
		return l.exists("/api/v1/namespaces/default/serviceaccounts/default")
	})
	l.Do(http.MethodPost, podsPath, map[string]any{
		"metadata": map[string]any{"name": name, "labels": map[string]any{"app": name}},
		"spec": map[string]any{
			"nodeName": l.nodes[i].name, "terminationGracePeriodSeconds": 0, "automountServiceAccountToken": false,
			"containers": []any{map[string]any{"name": "c", "image": podImage, "imagePullPolicy": "Never"}},
		},
	}, nil)
	return name
}

// started waits until a pod runs.
func (l *kubeletLab) started(i int, name string) *netlab.Pod {
	l.t.Helper()
	k := l.nodes[i]
	var p netlab.Pod
	l.eventually("pod "+name+" runs on "+k.name, func() bool {
		var pod struct {
			Status struct {
				Phase  string
				PodIPs []struct{ IP netip.Addr }
			}
		}
		l.Do(http.MethodGet, podsPath+"/"+name, nil, &pod)
		for _, a := range pod.Status.PodIPs {
			if a.IP.Is4() {
				p.Addr = a.IP
			} else {
				p.Addr6 = a.IP
			}
		}
		return pod.Status.Phase == "Running" && p.Addr.IsValid() && p.Addr6.IsValid()
	}, func() string {
		out, _ := l.kubectl("", "describe", "pod", name)
		return out + k.log()
	})
	p.NS = k.namespaceOf(name, p.Addr)
	return &p
}

// namespaceOf opens the network namespace of a pod, by its address.
func (k *kubelet) namespaceOf(name string, addr netip.Addr) *netlab.Namespace {
	k.t.Helper()
	paths, err := filepath.Glob(k.path("/run/netns/*"))
	testkit.Must(k.t, err)
	for _, path := range paths {
		ns, err := netlab.OpenFile(name, path)
		if err != nil {
			continue // another pod's, which ends
		}
		addrs, err := ns.Netlink().AddrList(nil, netlink.FAMILY_V4)
		testkit.Must(k.t, err)
		for _, a := range addrs {
			if a.IP.String() == addr.String() {
				k.t.Cleanup(func() { testkit.Must(k.t, ns.Close()) })
				return ns
			}
		}
		testkit.Must(k.t, ns.Close())
	}
	k.t.Fatalf("%s has no namespace with %s: %q", k.name, addr, paths)
	return nil
}

// remove deletes pods and waits until they are gone.
func (l *kubeletLab) remove(names ...string) {
	l.t.Helper()
	for _, name := range names {
		l.Do(http.MethodDelete, podsPath+"/"+name, nil, nil)
	}
	for _, name := range names {
		l.eventually("pod "+name+" is gone", func() bool { return !l.exists(podsPath + "/" + name) })
	}
}

// writePodImage writes an image of busybox that does nothing, for pods and as what
// holds a pod's namespaces.
func writePodImage(t *testing.T) string {
	t.Helper()
	busybox, err := os.ReadFile(filepath.Join(dockerDir(t), "bin", "busybox"))
	testkit.Must(t, err)
	archive := func(files ...any) []byte {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for i := 0; i < len(files); i += 2 {
			text := files[i+1].([]byte)
			testkit.Must(t, w.WriteHeader(&tar.Header{Name: files[i].(string), Mode: 0o755, Size: int64(len(text)), ModTime: time.Unix(0, 0)}))
			_, err := w.Write(text)
			testkit.Must(t, err)
		}
		testkit.Must(t, w.Close())
		return b.Bytes()
	}
	layer := archive("bin/busybox", busybox)
	config := fmt.Appendf(nil, `{"architecture": %q, "os": "linux", "config": {"Entrypoint": ["/bin/busybox", "sleep", "1000000"]},
		"rootfs": {"type": "layers", "diff_ids": ["sha256:%x"]}}`, runtime.GOARCH, sha256.Sum256(layer))
	manifest := fmt.Appendf(nil, `[{"Config": "config.json", "RepoTags": [%q], "Layers": ["layer.tar"]}]`, podImage)
	path := filepath.Join(scratchDir(t), "pod.tar")
	testkit.Must(t, os.WriteFile(path, archive("manifest.json", manifest, "config.json", config, "layer.tar", layer), 0o644))
	return path
}
