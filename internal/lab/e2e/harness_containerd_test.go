package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twillnet/twill/internal/lab/netlab"
	"github.com/twillnet/twill/internal/lab/testkit"
)

// imageName is the image's as make image makes it.
const imageName = "localhost/twill:dev"

// imageArchive is the image for this machine, which make image makes.
func imageArchive(t testing.TB) string {
	t.Helper()
	path, err := filepath.Abs(filepath.Join("..", "..", "..", "bin", "image", "twill-"+runtime.GOARCH+".tar"))
	testkit.Must(t, err)
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("%s does not exist: run make image in the root of the repository", path)
	}
	return path
}

// containerd is one that a test has started on a host, with the image.
type containerd struct {
	t         testing.TB
	ns        *netlab.Namespace
	dir       string // of the programs
	state     string
	namespace string // containerd's namespace for images and containers
	n         int    // containers
}

// startContainerd starts a containerd and imports the image. Everything it
// creates is in mount and process namespaces of its own, and is removed when the test ends.
func startContainerd(t testing.TB, ns *netlab.Namespace) *containerd {
	t.Helper()
	state := scratchDir(t)
	c := &containerd{t: t, ns: ns, dir: dockerDir(t), state: state, namespace: filepath.Base(state)}
	config := fmt.Sprintf("version = 2\nroot = \"%[1]s/root\"\nstate = \"%[1]s/state\"\n"+
		"disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = \"%[1]s/sock\"\n", state)
	testkit.Must(t, os.WriteFile(filepath.Join(state, "config.toml"), []byte(config), 0o644))
	script := fmt.Sprintf(`
		mountpoint -q /sys/fs/cgroup/unified && umount /sys/fs/cgroup/unified
		mount -t tmpfs none /run
		exec containerd --config %s/config.toml`, state)
	cmd := ns.Command(context.Background(), "unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", script)
	cmd.Env = c.environ()
	logged := new(testkit.Log)
	cmd.Stdout, cmd.Stderr = logged, logged
	testkit.Must(t, cmd.Start())
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(ended)
	}()
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("log of containerd in %s:\n%s", ns, logged)
		}
		_ = cmd.Process.Kill()
		<-ended
		removeCgroups(t, "/"+c.namespace)
	})
	testkit.Eventually(t, fmt.Sprintf("containerd in %s answers", ns), func() bool {
		select {
		case <-ended:
			t.Fatalf("containerd in %s exited: %s", ns, cmd.ProcessState)
		default:
		}
		return c.ctr("version").Run() == nil
	})
	if out, err := c.ctr("images", "import", imageArchive(t)).CombinedOutput(); err != nil {
		t.Fatalf("import the image: %v\n%s", err, out)
	}
	return c
}

func (c *containerd) environ() []string {
	return append(os.Environ(), "PATH="+filepath.Join(c.dir, "bin")+":"+os.Getenv("PATH"), "LD_LIBRARY_PATH="+filepath.Join(c.dir, "lib"))
}

// argv is a command line of containerd's client.
func (c *containerd) argv(args ...string) []string {
	return append([]string{filepath.Join(c.dir, "bin", "ctr"), "--address", filepath.Join(c.state, "sock"), "--namespace", c.namespace}, args...)
}

func (c *containerd) ctr(args ...string) *netlab.Cmd {
	argv := c.argv(args...)
	return c.ns.Command(context.Background(), argv[0], argv[1:]...)
}

// run is the command line of a container as the manifest has it: on the host's
// network, with two capabilities besides the runtime's own, not privileged, and with the
// seccomp profile of deploy/seccomp. Each directory is mounted; "a:b" is a of the host as
// b of the container.
func (c *containerd) run(dirs []string, command ...string) []string {
	c.n++
	args := []string{
		"run", "--rm", "--net-host", "--snapshotter", "native", "--fifo-dir", filepath.Join(c.state, "fifo"),
		"--cap-add", "CAP_NET_ADMIN", "--cap-add", "CAP_NET_RAW",
		"--seccomp", "--seccomp-profile", filepath.Join("..", "..", "..", "deploy", "seccomp", "twilld.json"),
	}
	for _, d := range dirs {
		from, to, ok := strings.Cut(d, ":")
		if !ok {
			to = from
		}
		args = append(args, "--mount", fmt.Sprintf("type=bind,src=%s,dst=%s,options=rbind:rw", from, to))
	}
	return c.argv(slices.Concat(args, []string{imageName, fmt.Sprintf("c%d", c.n)}, command)...)
}

// output is what a command prints in a container of its own. The command leaves its
// output and exit status in files: ctr loses the output where the container ends before
// ctr's thread that opens the FIFO has been scheduled again, since ctr then cancels the
// opening.
func (c *containerd) output(dirs []string, command ...string) string {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	results := filepath.Join(c.state, fmt.Sprintf("results%d", c.n+1))
	testkit.Must(c.t, os.Mkdir(results, 0o755))
	argv := c.run(slices.Concat(dirs, []string{results + ":/results"}),
		slices.Concat([]string{"sh", "-c", `"$@" >/results/output 2>&1; echo $? >/results/status`, "sh"}, command)...)
	said, err := c.ns.Command(ctx, argv[0], argv[1:]...).CombinedOutput()
	out, _ := os.ReadFile(filepath.Join(results, "output"))
	status, missing := os.ReadFile(filepath.Join(results, "status"))
	if missing != nil {
		c.t.Fatalf("%q did not run to completion in a container: ctr: %v\n%s%s", command, err, said, out)
	}
	if string(status) != "0\n" {
		c.t.Fatalf("%q in a container: exit status %s%s", command, status, out)
	}
	return string(out)
}
