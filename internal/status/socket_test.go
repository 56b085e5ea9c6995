package status

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/lab/testkit"
	"github.com/twillnet/twill/metrics"
)

// socketPath returns a path short enough for sun_path, whatever TMPDIR is.
func socketPath(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "twill")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, "run", "twilld.sock")
}

func serve(t *testing.T, path string, d Document) *Server {
	t.Helper()
	s, err := Listen(path, func() Document { return d }, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func TestDocumentArrivesAsItWasServed(t *testing.T) {
	path, want := socketPath(t), full()
	serve(t, path, want)
	got, err := Fetch(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(*got, want) {
		t.Errorf("got  %+v\nwant %+v", *got, want)
	}
}

func TestSocketIsForItsOwnerOnly(t *testing.T) {
	path := socketPath(t)
	serve(t, path, Document{})
	fi, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if fi.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, want 0600", fi.Mode().Perm())
	}
}

func TestSecondDaemonIsRefusedAndNamesTheFirst(t *testing.T) {
	path := socketPath(t)
	serve(t, path, Document{PID: 1})
	_, err := Listen(path, func() Document { return Document{PID: 2} }, slog.New(slog.DiscardHandler))
	want := fmt.Sprintf("another twilld is running (pid %d)", os.Getpid())
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Fatalf("got %v, want %q", err, want)
	}
	if d, err := Fetch(t.Context(), path); err != nil || d.PID != 1 {
		t.Errorf("the first no longer answers: %v, %v", d, err)
	}
}

func TestStaleSocketIsReplaced(t *testing.T) {
	path := socketPath(t)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false) // as after SIGKILL
	l.Close()
	serve(t, path, Document{PID: 7})
	if d, err := Fetch(t.Context(), path); err != nil || d.PID != 7 {
		t.Errorf("got %v, %v", d, err)
	}
}

func TestFileThatIsNotASocketIsKept(t *testing.T) {
	path := filepath.Join(filepath.Dir(filepath.Dir(socketPath(t))), "precious")
	if err := os.WriteFile(path, []byte("data"), 0o644); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(path)
	if _, err := Listen(path, nil, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), "not a socket") {
		t.Errorf("got %v", err)
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != "data" {
		t.Errorf("the file is now %q, %v", b, err)
	}
}

// Everyone may open the directory, whose subnet.env is for everyone to read, and flock(2)
// asks for no more.
func TestLockThatAnyUserCanHoldKeepsNoDaemonFromStarting(t *testing.T) {
	path := socketPath(t)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		t.Fatal(err)
	}
	serve(t, path, Document{PID: 7})
	left, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(left) != 1 {
		t.Errorf("beside the socket there are %v, %v", left, err)
	}
}

func TestOfManyAtOnceOneListens(t *testing.T) {
	path := socketPath(t)
	var (
		wg      sync.WaitGroup
		mu      sync.Mutex
		servers []*Server
	)
	for range 16 {
		wg.Go(func() {
			if s, err := Listen(path, func() Document { return Document{} }, slog.New(slog.DiscardHandler)); err == nil {
				mu.Lock()
				defer mu.Unlock()
				servers = append(servers, s)
			}
		})
	}
	wg.Wait()
	for _, s := range servers {
		s.Close()
	}
	if len(servers) != 1 {
		t.Errorf("%d of 16 listened, want 1", len(servers))
	}
}

func TestCloseRemovesTheSocket(t *testing.T) {
	path := socketPath(t)
	s := serve(t, path, Document{})
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after Close: %v", err)
	}
}

func TestPathTooLongForTheKernelIsNamed(t *testing.T) {
	_, err := Listen("/tmp/"+strings.Repeat("x", 104), nil, slog.New(slog.DiscardHandler))
	if err == nil || !strings.Contains(err.Error(), "109 bytes") {
		t.Errorf("got %v", err)
	}
}

func TestClientSaysWhatToDo(t *testing.T) {
	path := socketPath(t)
	ask := func(want string) {
		t.Helper()
		_, err := Fetch(context.Background(), path)
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), path) {
			t.Errorf("got %v, want %q and the path", err, want)
		}
	}
	ask("is twilld running")

	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
	ask("no process listens")

	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	silent, err := net.Listen("unix", path) // as that of a process that accepts no connections
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	_, err = Fetch(ctx, path)
	if err == nil || !strings.Contains(err.Error(), "no answer in time") || !strings.Contains(err.Error(), "LimitNOFILE=") {
		t.Errorf("got %v, want the cause and the remedy", err)
	}
}

func TestSummaryAddsUpShardsAndReasons(t *testing.T) {
	var a, b metrics.Shard
	a.TX.Packets.Add(5)
	a.TX.Drop(metrics.DropNoRoute, 2)
	a.RX.Drop(metrics.DropSpoofedSource, 1)
	b.RX.Drop(metrics.DropSpoofedSource, 3)
	b.RX.Drop(metrics.DropMalformed, 1)
	b.CacheHits.Add(9)
	shards, drops := Summarize([]*metrics.Shard{&a, &b})
	if shards[0].TX.Packets != 5 || shards[0].TX.Dropped != 2 || shards[1].RX.Dropped != 4 || shards[1].CacheHits != 9 {
		t.Errorf("shards: %+v", shards)
	}
	want := Drops{
		TX: map[string]uint64{"no_route": 2},
		RX: map[string]uint64{"spoofed_source": 4, "malformed": 1},
	}
	if !reflect.DeepEqual(drops, want) {
		t.Errorf("drops: %+v, want %+v", drops, want)
	}
}

func TestLogLevelIsChangedThroughTheSocket(t *testing.T) {
	path := socketPath(t)
	type change struct {
		to     slog.Level
		during time.Duration
	}
	var got []change
	s, err := Listen(path, func() Document { return Document{} }, slog.New(slog.DiscardHandler),
		LogLevelRoute(func(to slog.Level, during time.Duration) { got = append(got, change{to, during}) }))
	if err != nil {
		t.Fatal(err)
	}
	want := []change{{slog.LevelDebug, time.Minute}, {slog.LevelInfo, 0}}
	for _, w := range want {
		if err := ChangeLogLevel(t.Context(), path, w.to, w.during); err != nil {
			t.Error(err)
		}
	}
	for _, wrong := range []string{"", "?level=loud&for=1m", "?level=debug&for=soon"} {
		if code, _, err := request(t.Context(), path, http.MethodPost, logLevelPath+wrong); err != nil || code != http.StatusBadRequest {
			t.Errorf("%q: answer %d, error %v", wrong, code, err)
		}
	}
	s.Close()
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestOlderDaemonKeepsItsLogLevel(t *testing.T) {
	path := socketPath(t)
	serve(t, path, Document{})
	if err := ChangeLogLevel(t.Context(), path, slog.LevelDebug, time.Minute); err == nil || !strings.Contains(err.Error(), "older version") {
		t.Errorf("got %v", err)
	}
}

// A process that holds the socket but does not answer, or stops amid an answer, does not
// keep a command beyond its context.
func TestClientWaitsNoLongerThanItsContext(t *testing.T) {
	for _, answer := range []string{"", "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"} {
		path := socketPath(t)
		testkit.Must(t, os.MkdirAll(filepath.Dir(path), 0o755))
		l, err := net.Listen("unix", path)
		testkit.Must(t, err)
		defer l.Close()
		ctx, cancel := context.WithCancelCause(t.Context())
		enough := errors.New("enough")
		hung := make(chan error, 1)
		go func() {
			conn, err := l.Accept()
			if err == nil {
				defer conn.Close()
				_, err = io.WriteString(conn, answer)
				cancel(enough)
				_, _ = io.Copy(io.Discard, conn) // until the client has closed it
			}
			hung <- err
		}()
		if _, err := Fetch(ctx, path); !errors.Is(err, enough) {
			t.Errorf("after %q: %v", answer, err)
		}
		testkit.Must(t, <-hung)
	}
}

func TestAnswerThatIsCutShortIsAnError(t *testing.T) {
	path := socketPath(t)
	testkit.Must(t, os.MkdirAll(filepath.Dir(path), 0o755))
	l, err := net.Listen("unix", path)
	testkit.Must(t, err)
	defer l.Close()
	go func() {
		if conn, err := l.Accept(); err == nil {
			_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{}")
			conn.Close()
		}
	}()
	if _, err := Fetch(t.Context(), path); err == nil {
		t.Error("half a document was accepted")
	}
}
