package e2e

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/twillnet/twill/internal/lab/netlab"
	"github.com/twillnet/twill/internal/lab/testkit"
)

// dockerDir is where scripts/fetch-docker.sh puts what it fetches.
func dockerDir(t testing.TB) string {
	t.Helper()
	dir, err := filepath.Abs(filepath.Join("..", "..", "..", "bin", "peers", "docker"))
	testkit.Must(t, err)
	if _, err := os.Stat(filepath.Join(dir, "complete")); err != nil {
		t.Fatalf("%s does not exist: run make docker in the root of the repository", dir)
	}
	return dir
}

// docker is a dockerd that a test has started on a host.
type docker struct {
	t       testing.TB
	ns      *netlab.Namespace
	dir     string // of the programs
	socket  string
	logged  *testkit.Log
	cgroups string // parent of its containers' control groups
}

// startDocker starts a dockerd with the options that lines of shell put into the
// variable DOCKER_OPTS. Everything it creates is in mount and process namespaces
// of its own, and is removed when the test ends.
func startDocker(t testing.TB, ns *netlab.Namespace, options string) *docker {
	t.Helper()
	state := scratchDir(t)
	d := &docker{
		t: t, ns: ns, dir: dockerDir(t), socket: filepath.Join(state, "docker.sock"), logged: new(testkit.Log),
		cgroups: "/" + filepath.Base(state),
	}
	// dockerd is the first process of its namespace, so that containerd and the
	// containers end with it. A hybrid host's second tree of control groups
	// would mislead containerd.
	script := fmt.Sprintf(`
		mountpoint -q /sys/fs/cgroup/unified && umount /sys/fs/cgroup/unified
		mount -t tmpfs none /run
		%s
		exec dockerd $DOCKER_OPTS --host=unix://%s --data-root=%[3]s/data --exec-root=%[3]s/exec --pidfile=%[3]s/pid \
			--cgroup-parent=%s --storage-driver=vfs`, options, d.socket, state, d.cgroups)
	cmd := ns.Command(context.Background(), "unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc",
		"sh", "-c", script)
	cmd.Env = d.environ()
	cmd.Stdout, cmd.Stderr = d.logged, d.logged
	testkit.Must(t, cmd.Start())
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(ended)
	}()
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("log of dockerd in %s:\n%s", ns, d.logged)
		}
		_ = cmd.Process.Kill()
		<-ended
		removeCgroups(d.t, d.cgroups)
	})
	testkit.Eventually(t, fmt.Sprintf("dockerd in %s answers", ns), func() bool {
		select {
		case <-ended:
			t.Fatalf("dockerd in %s exited: %s", ns, cmd.ProcessState)
		default:
		}
		return d.command("version").Run() == nil
	})
	return d
}

func (d *docker) environ() []string {
	return append(os.Environ(), "PATH="+filepath.Join(d.dir, "bin")+":"+os.Getenv("PATH"), "LD_LIBRARY_PATH="+filepath.Join(d.dir, "lib"))
}

// command prepares a command of docker's client.
func (d *docker) command(args ...string) *netlab.Cmd {
	cmd := d.ns.Command(context.Background(), filepath.Join(d.dir, "bin", "docker"), append([]string{"--host=unix://" + d.socket}, args...)...)
	cmd.Env = d.environ()
	return cmd
}

// run runs a command of docker's client and returns what it has printed.
func (d *docker) run(args ...string) string {
	d.t.Helper()
	out, err := d.command(args...).CombinedOutput()
	if err != nil {
		d.t.Fatalf("docker %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

// importBusybox makes the image "busybox".
func (d *docker) importBusybox() {
	d.t.Helper()
	root := scratchDir(d.t)
	script := fmt.Sprintf(`mkdir %[1]s/bin %[1]s/tmp && cp %[2]s/bin/busybox %[1]s/bin/sh && ln -s sh %[1]s/bin/busybox && tar -C %[1]s -cf %[1]s.tar .`, root, d.dir)
	out, err := d.ns.Command(context.Background(), "sh", "-c", script).CombinedOutput()
	d.t.Cleanup(func() { os.Remove(root + ".tar") })
	if err != nil {
		d.t.Fatalf("create an image: %v\n%s", err, out)
	}
	d.run("import", root+".tar", "busybox")
}

// removeCgroups removes what a runtime that was killed has left of its control
// groups below parent. The last process of a group may take a moment to end.
func removeCgroups(t testing.TB, parent string) {
	t.Helper()
	var left []string
	if !testkit.Within(testkit.Patience, func() bool {
		left = nil
		for _, tree := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/*"} {
			groups, _ := filepath.Glob(tree + parent + "/*")
			tops, _ := filepath.Glob(tree + parent)
			for _, g := range append(groups, tops...) {
				if os.Remove(g) != nil {
					left = append(left, g)
				}
			}
		}
		return left == nil
	}) {
		t.Errorf("control groups left: %s", left)
	}
}

// container ── docker0 ── host a ──────────── host b ── pod-b
//
//	dockerd --bip=10.5.1.1/24 --mtu=1472
func TestContainersOfDockerAreInTheNetwork(t *testing.T) {
	t.Parallel()
	testkit.Must(t, build("twill", "./cmd/twill"))
	opts := filepath.Join(scratchDir(t), "docker_opts.env")
	for _, tc := range []struct {
		name    string
		flags   []string // of twilld
		options string   // of dockerd, with the subnet file in $1
		caller  string   // the source that a pod elsewhere sees; empty: the container
	}{
		{"twill docker-opts", []string{"--ip-masq"}, bin("twill") + " docker-opts -c -f $1 -d " + opts + " && . " + opts, ""},
		// Docker masquerades all that leaves its bridge.
		{"flannel's recipe", nil, `. $1 && DOCKER_OPTS="--bip=$FLANNEL_SUBNET --mtu=$FLANNEL_MTU"`, "10.5.1.0"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l := newLab(t, labOptions{flags: append(tc.flags, "--iptables-forward-rules=true")})
			a, pod := l.daemons[0], l.pod(1)
			a.sh("ip link delete cni0") // Docker's bridge takes its place
			// As on a bare host. Docker turns it on, and has FORWARD drop what
			// no service accepts.
			a.sh("sysctl -w net.ipv4.ip_forward=0")
			d := startDocker(t, a.ns, "set -- "+a.subnetFile+"\n"+tc.options)
			if rules := firewall(t, a.ns); !strings.Contains(rules, ":FORWARD DROP") {
				t.Errorf("FORWARD drops nothing:\n%s", rules)
			}
			id, addr := d.startContainer()
			if !l.Hosts[0].Subnet.Contains(addr) {
				t.Errorf("the container has %s, want an address in %s", addr, l.Hosts[0].Subnet)
			}
			d.run("exec", id, "busybox", "grep", "-x", "1472", "/sys/class/net/eth0/mtu")
			testkit.Must(t, ping(pod, addr, 1472))
			d.run("exec", id, "busybox", "ping", "-c", "1", "-w", "30", "-s", "1444", pod.Addr.String())
			if tc.caller == "" {
				tc.caller = addr.String()
			}
			if from := d.calls(id, pod); from != tc.caller {
				t.Errorf("the pod sees a connection from %s, want %s", from, tc.caller)
			}
			d.run("rm", "--force", id)
		})
	}
}

// startContainer starts a container that does nothing, and returns its name and
// address.
func (d *docker) startContainer() (id string, addr netip.Addr) {
	d.t.Helper()
	d.importBusybox()
	id = d.run("run", "--detach", "busybox", "sh", "-c", "exec busybox sleep 1000")
	addr, err := netip.ParseAddr(d.run("inspect", "--format={{.NetworkSettings.IPAddress}}", id))
	testkit.Must(d.t, err)
	return id, addr
}

// calls has a container connect to a pod, and returns the source that the pod sees.
func (d *docker) calls(id string, pod *netlab.Pod) (from string) {
	d.t.Helper()
	listener, err := pod.NS.Listen("tcp4", netip.AddrPortFrom(pod.Addr, 0).String())
	testkit.Must(d.t, err)
	defer listener.Close()
	_, port, _ := net.SplitHostPort(listener.Addr().String())
	callers := make(chan string, 1)
	go func() {
		c, err := listener.Accept()
		if err != nil {
			callers <- err.Error()
			return
		}
		host, _, _ := net.SplitHostPort(c.RemoteAddr().String())
		c.Close()
		callers <- host
	}()
	d.run("exec", id, "busybox", "nc", "-w", "30", pod.Addr.String(), port)
	return <-callers
}
