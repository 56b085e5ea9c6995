package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/twillnet/twill/internal/lab/netlab"
	"github.com/twillnet/twill/internal/lab/testkit"
)

// marks are the largest sizes, in bytes, of programs for amd64 as the Makefile builds
// them. docs/dependencies.md lists what they consist of. If one is exceeded, leave something
// out of the program, or raise its mark and document there what the bytes are for.
var marks = map[string]int64{
	"twill":        13_900_000,
	"twilld-lite":  15_600_000,
	"twilld-board": 12_000_000,
}

// bounded builds the programs that have marks, and returns their directory.
var bounded = sync.OnceValues(func() (string, error) {
	dir := bin("bounded")
	cmd := exec.Command("make", "--no-print-directory", "build-bounded", "BIN="+dir)
	cmd.Dir = filepath.Join("..", "..", "..")
	cmd.Env = append(os.Environ(), "MAKEFLAGS=") // a make that runs the test has its own jobs
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("make build-bounded: %w\n%s", err, out)
	}
	return dir, nil
})

// pod-a ── host a: twilld-lite ──────────── host b: twilld-board ── pod-b
func TestSmallProgramsAreSmallAndCarryPackets(t *testing.T) {
	t.Parallel()
	dir, err := bounded()
	testkit.Must(t, err)
	for name, most := range marks {
		info, err := os.Stat(filepath.Join(dir, name))
		testkit.Must(t, err)
		if runtime.GOARCH == "amd64" && info.Size() > most {
			t.Errorf("%s has %d bytes, more than %d", name, info.Size(), most)
		}
	}
	l := newLab(t, labOptions{idle: true})
	for i, name := range []string{"twilld-lite", "twilld-board"} {
		l.daemons[i].program = filepath.Join(dir, name)
	}
	l.start()
	if err := (streams{flows: 2, up: 1 << 20, down: 1 << 20}).run(l.pod(0), l.pod(1), l.pod(1).Addr); err != nil {
		t.Error(err)
	}
}

// A flag for a part that a small daemon is built without is refused, with the remedy.
func TestSmallDaemonsNameThePartsThatTheyLack(t *testing.T) {
	t.Parallel()
	dir, err := bounded()
	testkit.Must(t, err)
	s := newSite(t)
	for _, tt := range []struct {
		program, flag string
		says          []string
	}{
		{"twilld-lite", "--embedded-etcd", []string{"built without it", "--etcd-endpoints"}},
		{"twilld-lite", "--kube-subnet-mgr", []string{"built without Kubernetes", "full build"}},
		{"twilld-lite", "--kernel-path=tc", []string{"built without BPF", "--kernel-path=auto"}},
		{"twilld-board", "--embedded-etcd", []string{"built without it", "full build"}},
		{"twilld-board", "--etcd-prefix=/x", []string{"built without an etcd client", "--lease-file"}},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), testkit.Patience)
		out, err := s.NS.Command(ctx, filepath.Join(dir, tt.program), tt.flag, "--socket="+filepath.Join(s.dir, "twilld.sock")).CombinedOutput()
		cancel()
		for _, want := range tt.says {
			if err == nil || !strings.Contains(string(out), want) {
				t.Errorf("%s %s: %v, %s, want %q", tt.program, tt.flag, err, out, want)
			}
		}
	}
}

// twill has no BPF: the twilld beside it runs the self-test of the kernel path.
func TestCheckOfTheKernelPathIsMadeByTwilld(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	small, err := bounded()
	testkit.Must(t, err)
	for _, tt := range []struct{ twilld, says string }{
		{bin("twilld"), "the self-test passed"},
		{filepath.Join(small, "twilld-lite"), "user space would carry all packets: this program was built without BPF"},
		{"", "run the self-test with twilld"},
	} {
		dir := scratchDir(t)
		testkit.Must(t, os.Link(filepath.Join(small, "twill"), filepath.Join(dir, "twill")))
		if tt.twilld != "" {
			testkit.Must(t, os.Link(tt.twilld, filepath.Join(dir, "twilld")))
		}
		cmd := s.NS.Command(t.Context(), filepath.Join(dir, "twill"), "check", "--kernel-path", "--backend=udp", "--iface="+netlab.UnderlayLink)
		cmd.Env = append(os.Environ(), "PATH=/usr/sbin:/usr/bin:/sbin:/bin")
		if out, _ := cmd.CombinedOutput(); !strings.Contains(testkit.Unwrapped(string(out)), tt.says) { // other findings decide the exit code
			t.Errorf("beside %q, want %q:\n%s", tt.twilld, tt.says, out)
		}
	}
}
