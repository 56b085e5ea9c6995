package status

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// TestSocketOfAKilledProcessIsTakenOver also while a program that the process was
// starting has it still.
func TestSocketOfAKilledProcessIsTakenOver(t *testing.T) {
	const variable = "TWILL_DYING_SOCKET"
	if path := os.Getenv(variable); path != "" {
		die(path)
	}
	path := filepath.Join(t.TempDir(), "twilld.sock")
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
	s, err := Listen(path, func() Document { return Document{} })
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
}

// die is the other process of the test: it listens at path, leaves its socket to a
// program for a second, and ends.
func die(path string) {
	l, err := net.Listen("unix", path)
	if err != nil {
		panic(err)
	}
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
