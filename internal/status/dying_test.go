package status

import (
	"bufio"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/lab/testkit"
)

// TestSocketOfAKilledProcessIsTakenOver also while a program that the process was
// starting has it still.
func TestSocketOfAKilledProcessIsTakenOver(t *testing.T) {
	const variable = "TWILL_DYING_SOCKET"
	if path := os.Getenv(variable); path != "" {
		die(path)
	}
	path := socketPath(t)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestSocketOfAKilledProcessIsTakenOver$")
	// The race detector would let it wait for a second at its end.
	cmd.Env = append(os.Environ(), variable+"="+path, "GORACE=atexit_sleep_ms=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if conn, err := net.Dial("unix", path); err != nil {
		t.Fatalf("nobody holds the socket: %v", err)
	} else {
		conn.Close()
	}
	s, err := Listen(path, func() Document { return Document{} }, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
}

// die is the other process of the test: it listens at path, leaves its socket to a
// program for a second, and ends.
func die(path string) {
	l := mustListen(path)
	f, err := l.(*net.UnixListener).File()
	if err != nil {
		panic(err)
	}
	heir := exec.Command("sleep", "1")
	heir.ExtraFiles = []*os.File{f}
	if err := heir.Start(); err != nil {
		panic(err)
	}
	os.Exit(0)
}

// A daemon that is killed and started again at once: the old one is still freeing
// its memory, and its socket is closed after that.
func TestSocketOfAProcessThatIsJustDyingIsTakenOver(t *testing.T) {
	for range 5 {
		path := socketPath(t)
		cmd := otherProcess(t, "large", path)
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		s, err := Listen(path, func() Document { return Document{} }, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		s.Close()
		cmd.Wait()
	}
}

// A process that stops a daemon by a signal need not wait for its end.
func TestSocketOfAProcessThatIsStoppingIsTakenOverOnceItHasEnded(t *testing.T) {
	path := socketPath(t)
	asked := make(chan struct{}, 100)
	log := slog.New(slog.DiscardHandler)
	first, err := Listen(path, func() Document {
		select {
		case asked <- struct{}{}:
		default:
		}
		return Document{Stopping: true}
	}, log)
	testkit.Must(t, err)
	second := make(chan error, 1)
	go func() {
		s, err := Listen(path, func() Document { return Document{} }, log)
		if err == nil {
			s.Close()
		}
		second <- err
	}()
	// A process that answers and is not stopping is waited for no longer than this.
	for start := time.Now(); time.Since(start) <= 2*signalledFor; {
		testkit.Receive(t, "the first is asked", asked)
	}
	first.Close()
	if err := testkit.Receive(t, "the second starts", second); err != nil {
		t.Error(err)
	}
}

func TestProcessThatHangsIsDistinguishedFromOneThatRuns(t *testing.T) {
	path := socketPath(t)
	cmd := otherProcess(t, "silent", path)
	_, err := Listen(path, func() Document { return Document{} }, slog.New(slog.DiscardHandler))
	for _, want := range []string{fmt.Sprintf("(pid %d)", cmd.Process.Pid), "did not answer", "kill -9"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v; want it to say %q", err, want)
		}
	}
}

func TestZombieIsDyingAndALivingProcessIsNot(t *testing.T) {
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	if dying(cmd.Process.Pid) {
		t.Error("a process that sleeps counts as dying")
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	var info unix.Siginfo // WNOWAIT leaves the zombie
	if err := unix.Waitid(unix.P_PID, cmd.Process.Pid, &info, unix.WEXITED|unix.WNOWAIT, nil); err != nil {
		t.Fatal(err)
	}
	if !dying(cmd.Process.Pid) {
		t.Error("a zombie does not count as dying")
	}
}

// otherProcess starts this test's binary as a process that listens at path and
// never answers. It ends with the test.
func otherProcess(t *testing.T, kind, path string) *exec.Cmd {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestMain$")
	cmd.Env = append(os.Environ(), holdVariable+"="+kind+" "+path)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	return cmd
}

const holdVariable = "TWILL_HOLD_SOCKET"

func TestMain(m *testing.M) {
	if kind, path, ok := strings.Cut(os.Getenv(holdVariable), " "); ok {
		hold(kind, path)
	}
	os.Exit(m.Run())
}

// hold is the other process: it listens and does nothing else, with much memory
// that takes a while to free if kind says so.
func hold(kind, path string) {
	var memory []byte
	if kind == "large" {
		memory = make([]byte, 512<<20)
		for i := 0; i < len(memory); i += 4096 {
			memory[i] = 1
		}
	}
	l := mustListen(path)
	fmt.Println("listening")
	for {
		unix.Pause()
		runtime.KeepAlive(l)
		runtime.KeepAlive(memory)
	}
}

func mustListen(path string) net.Listener {
	l, err := net.Listen("unix", path)
	if err != nil {
		panic(err)
	}
	return l
}
