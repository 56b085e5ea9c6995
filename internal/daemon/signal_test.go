package daemon

import (
	"bufio"
	"errors"
	"os"
	"os/exec"
	"syscall"
	"testing"
)

// hangsInClose is the variable that makes this test binary a daemon whose data
// plane cannot be closed.
const hangsInClose = "TWILLD_TEST_HANGS_IN_CLOSE"

func TestSecondSignalEndsADaemonThatHangsInClose(t *testing.T) {
	if os.Getenv(hangsInClose) != "" {
		hang(t)
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestSecondSignalEndsADaemonThatHangsInClose$")
	cmd.Env = append(os.Environ(), hangsInClose+"=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	for _, want := range []string{"ready", "closing"} {
		if !lines.Scan() || lines.Text() != want {
			t.Fatalf("got %q, %v; want %q", lines.Text(), lines.Err(), want)
		}
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
	}
	var exit *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGTERM {
		t.Errorf("ended with %v, want the signal", err)
	}
}

// hang is the other process of the test.
func hang(t *testing.T) {
	h := newRig(t)
	h.daemon.open = func(n node) (dataPlane, error) {
		_, err := h.dp.open(n)
		return unclosable{h.dp}, err
	}
	h.start(t)
	os.Stdout.WriteString("ready\n")
	h.wait(t)
}

type unclosable struct{ *fakeDataplane }

func (unclosable) Close() error {
	os.Stdout.WriteString("closing\n")
	select {}
}
