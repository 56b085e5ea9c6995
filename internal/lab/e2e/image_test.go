package e2e

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twillnet/twill/internal/lab/netlab"
	"github.com/twillnet/twill/internal/lab/testkit"
)

// The image beside a twilld of the host. The container is not privileged, and its
// /dev has no net/tun.
//
//	pod-a ── host a: containerd, the image's flanneld ─── host b: twilld ── pod-b
func TestImageRunsWithoutPrivilegeAndWithoutDevNetTun(t *testing.T) {
	t.Parallel()
	l := newLab(t, labOptions{idle: true})
	c := startContainerd(t, l.Hosts[0].NS)
	a := l.daemons[0]
	container := c.run([]string{filepath.Dir(l.leaseFile), filepath.Dir(a.subnetFile)}, "/opt/bin/flanneld")
	// The laboratory puts the path of its own program behind wrap: that is left out.
	a.wrap = append([]string{"bash", "-c", `n=$1; shift; exec "${@:1:n}" "${@:n+2}"`, "bash", fmt.Sprint(len(container))}, container...)
	l.start()
	for _, i := range []int{0, 1} {
		testkit.Eventually(t, "the pods reach each other", func() bool { return acquaint(l.pod(i), l.pod(1-i).Addr) == nil })
		if err := pingWithin(5*time.Second, l.pod(i), l.pod(1-i).Addr, a.podMTU()); err != nil {
			t.Error(err)
		}
	}
	if err := (streams{flows: 2, up: 8 << 20, down: 8 << 20}).run(l.pod(0), l.pod(1), l.pod(1).Addr); err != nil {
		t.Error(err)
	}
	if mode := c.output(nil, "grep", "^Seccomp:", "/proc/self/status"); mode != "Seccomp:\t2\n" {
		t.Errorf("a container has %q, want a filter", mode)
	}
	for _, o := range a.status().Dataplane.Offloads {
		if !o.InForce && o.Mode != "off" {
			t.Errorf("%s: %s", o.Name, o.Why)
		}
	}
}

// The archive is what nodes fetch, with compressed layers.
func TestImageHasAtMost40MB(t *testing.T) {
	t.Parallel()
	info, err := os.Stat(imageArchive(t))
	testkit.Must(t, err)
	if mb := float64(info.Size()) / 1e6; mb > 40 {
		t.Errorf("%s has %.1f MB, want 40 at most", info.Name(), mb)
	}
}

// The init containers of flannel's manifest, and of the component plugins.
func TestImageInstallsPluginsAndConfiguration(t *testing.T) {
	t.Parallel()
	ns, err := netlab.New("node")
	testkit.Must(t, err)
	t.Cleanup(func() { testkit.Must(t, ns.Close()) })
	c := startContainerd(t, ns)
	host := scratchDir(t)
	for _, d := range []string{"bin", "net.d", "cfg"} {
		testkit.Must(t, os.Mkdir(filepath.Join(host, d), 0o755))
	}
	testkit.Must(t, os.WriteFile(filepath.Join(host, "cfg", "cni-conf.json"), []byte(`{"name": "cbr0"}`), 0o644))
	bin, net, cfg := host+"/bin:/opt/cni/bin", host+"/net.d:/etc/cni/net.d", host+"/cfg:/etc/kube-flannel"

	c.output([]string{bin}, "cp", "-f", "/flannel", "/opt/cni/bin/flannel")
	c.output([]string{bin}, "sh", "-ec", `for p in /usr/lib/cni/*; do /opt/bin/install-conf $p /opt/cni/bin/${p##*/}; done`)
	c.output([]string{net, cfg}, "/opt/bin/install-conf", "/etc/kube-flannel/cni-conf.json", "/etc/cni/net.d/10-flannel.conflist")

	var files []string
	testkit.Must(t, filepath.WalkDir(host, func(path string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			info, err := e.Info()
			testkit.Must(t, err)
			files = append(files, fmt.Sprintf("%v %s", info.Mode(), strings.TrimPrefix(path, host+"/")))
		}
		return err
	}))
	want := []string{
		"-rwxr-xr-x bin/bridge", "-rwxr-xr-x bin/flannel", "-rwxr-xr-x bin/host-local", "-rwxr-xr-x bin/loopback",
		"-rwxr-xr-x bin/portmap", "-rw-r--r-- cfg/cni-conf.json", "-rw-r--r-- net.d/10-flannel.conflist",
	}
	if !slices.Equal(files, want) {
		t.Errorf("installed\n%s\nwant\n%s", strings.Join(files, "\n"), strings.Join(want, "\n"))
	}
	testkit.Must(t, os.WriteFile(filepath.Join(host, "cfg", "subnet.env"), []byte(dualEnv), 0o644))
	opts := c.output([]string{cfg}, "sh", "-c", "/opt/bin/mk-docker-opts.sh -c -f /etc/kube-flannel/subnet.env -d /tmp/o && cat /tmp/o")
	if !strings.Contains(opts, "--bip=10.244.3.1/24") {
		t.Errorf("mk-docker-opts.sh wrote %q", opts)
	}
}

// inImage prints what a script does in the image's files, in ns. What it changes of
// the programs is gone afterwards, as with a container.
func inImage(t testing.TB, ns *netlab.Namespace, root, script string) string {
	t.Helper()
	out, err := ns.Command(t.Context(), "unshare", "--mount", "sh", "-ec", `
		mount -t proc proc "$1/proc" && mount -t tmpfs none "$1/tmp"
		cp -a "$1/usr/sbin" "$1/tmp" && mount --bind "$1/tmp/sbin" "$1/usr/sbin"
		exec chroot "$1" sh -c "$2"`, "sh", root, script).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", script, err, out)
	}
	return string(out)
}

// unpackImage returns a directory with the image's files.
func unpackImage(t testing.TB) string {
	t.Helper()
	dir := scratchDir(t)
	out, err := exec.Command("sh", "-ec", `
		mkdir "$1/archive" "$1/root" && tar -xf "$2" -C "$1/archive"
		for layer in $(sed 's/.*"Layers":\[\([^]]*\)\].*/\1/; s/[",]/ /g' "$1/archive/manifest.json"); do
			tar -xzf "$1/archive/$layer" -C "$1/root"
		done`, "sh", dir, imageArchive(t)).CombinedOutput()
	if err != nil {
		t.Fatalf("unpack the image: %v\n%s", err, out)
	}
	return filepath.Join(dir, "root")
}

// The kubelet marks the kind of iptables that it uses by a chain.
func TestImageUsesTheKindOfIPTablesOfTheKubelet(t *testing.T) {
	t.Parallel()
	root := unpackImage(t)
	for _, tt := range []struct{ name, before, want string }{
		{"no kubelet", "true", "nf_tables"},
		{"nftables", "iptables-nft -t mangle -N KUBE-IPTABLES-HINT", "nf_tables"},
		{"legacy", "iptables-legacy -t mangle -N KUBE-IPTABLES-HINT", "legacy"},
		{"legacy, old kubelet, IPv6", "ip6tables-legacy -t mangle -N KUBE-KUBELET-CANARY", "legacy"},
		{"legacy in use by others", "iptables-legacy -t mangle -N OTHER", "nf_tables"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ns, err := netlab.New("node")
			testkit.Must(t, err)
			t.Cleanup(func() { testkit.Must(t, ns.Close()) })
			inImage(t, ns, root, tt.before)
			// The second call uses what the first has left.
			for _, name := range []string{"iptables", "ip6tables-restore"} {
				out := inImage(t, ns, root, name+" --version && iptables --version && readlink /usr/sbin/iptables")
				if n := strings.Count(out, "("+tt.want+")"); n != 2 || !strings.Contains(out, "\nxtables-") {
					t.Errorf("%s is of another kind, want %s:\n%s", name, tt.want, out)
				}
			}
		})
	}
}

func TestImageIsTakenByDockerLoad(t *testing.T) {
	t.Parallel()
	ns, err := netlab.New("node")
	testkit.Must(t, err)
	t.Cleanup(func() { testkit.Must(t, ns.Close()) })
	d := startDocker(t, ns, `DOCKER_OPTS="--bridge=none --iptables=false"`)
	if out := d.run("load", "--input", imageArchive(t)); !strings.Contains(out, imageName) {
		t.Errorf("docker load prints %q", out)
	}
	// Docker waits a bounded time for the output of a container that has ended.
	var out string
	testkit.Eventually(t, "the image's entry point prints twilld's version", func() bool {
		out = d.run("run", "--rm", "--network=host", imageName, "--version")
		return strings.HasPrefix(out, "twilld ")
	}, func() string { return fmt.Sprintf("it prints %q", out) })
}
