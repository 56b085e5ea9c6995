// Package etcdtest runs real etcd servers for tests: one, or a cluster, optionally
// with TLS, on free loopback ports, with data in a directory that is removed
// after the test. Servers can be killed, restarted on their data, emptied, and
// cut off by a relay. CheckHistory proves from etcd's log that no subnet ever had
// two owners.
//
// The environment variable ETCD selects an etcd other than the one that "make
// etcd" builds, such as a distribution's older one.
package etcdtest

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/twillnet/twill/internal/lab/testkit"
)

// Options configure a server. The zero Options suit most tests.
type Options struct {
	// Host is the address to listen on; empty means 127.0.0.1.
	Host string
	// CA makes the server use TLS and refuse clients without a certificate of
	// that authority.
	CA *Authority
	// Program is the path of an etcd other than the one that "make etcd" builds.
	Program string
	// Flags are additional flags for etcd.
	Flags []string
	// Command creates the command that runs etcd and the function that starts it, for
	// example in a network namespace; nil means exec.Command and its Start.
	Command func(name string, args ...string) (cmd *exec.Cmd, start func() error)
}

// Server is an etcd server. Its methods must be called from one goroutine.
type Server struct {
	// Endpoint is the URL for clients.
	Endpoint string

	name    string
	dir     string // of data and logs
	args    []string
	options Options
	process *process // nil while it does not run
	starts  int
}

// process is one run of a server.
type process struct {
	os    *os.Process
	ended chan struct{}
	state error // of Wait; may be read once ended is closed
	log   string
}

// Binary returns the path of a program that "make etcd" builds: etcd or etcdctl.
// For etcd the environment variable ETCD takes precedence.
func Binary(name string) (string, error) {
	if other := os.Getenv("ETCD"); name == "etcd" && other != "" {
		return other, nil
	}
	_, file, _, _ := runtime.Caller(0)
	path := filepath.Join(filepath.Dir(file), "..", "..", "..", "bin", "peers", name)
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("%s is not built: run make etcd in the root of the repository", name)
	}
	return path, nil
}

// Start runs one server until the test ends.
func Start(t testing.TB, o Options) *Server {
	t.Helper()
	return StartCluster(t, 1, o)[0]
}

// StartCluster runs a cluster of n members until the test ends.
func StartCluster(t testing.TB, n int, o Options) []*Server {
	t.Helper()
	servers, err := Launch(t.TempDir(), n, o)
	t.Cleanup(func() {
		for _, s := range servers {
			s.Kill()
			if t.Failed() {
				t.Logf("log of etcd %s:\n%s", s.name, s.Log())
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return servers
}

// Launch is StartCluster for a caller without a test: it keeps data and logs in
// dir, and the caller has to Kill the servers, even if Launch fails.
func Launch(dir string, n int, o Options) ([]*Server, error) {
	scheme := "http"
	if o.CA != nil {
		scheme = "https"
	}
	if o.Host == "" {
		o.Host = "127.0.0.1"
	}
	servers := make([]*Server, n)
	var peers, cluster []string
	for i := range servers {
		ports, err := freePorts(o.Host, 2)
		if err != nil {
			return nil, err
		}
		s := &Server{
			Endpoint: fmt.Sprintf("%s://%s", scheme, ports[0]),
			name:     fmt.Sprintf("m%d", i),
			dir:      filepath.Join(dir, fmt.Sprintf("m%d", i)),
			options:  o,
		}
		servers[i] = s
		peers = append(peers, "http://"+ports[1])
		cluster = append(cluster, fmt.Sprintf("%s=%s", s.name, peers[i]))
	}
	for i, s := range servers {
		s.args = []string{
			"--name=" + s.name, "--data-dir=" + filepath.Join(s.dir, "data"),
			"--listen-client-urls=" + s.Endpoint, "--advertise-client-urls=" + s.Endpoint,
			"--listen-peer-urls=" + peers[i], "--initial-advertise-peer-urls=" + peers[i],
			"--initial-cluster=" + strings.Join(cluster, ","),
		}
		if o.Program == "" && os.Getenv("ETCD") == "" { // etcd 3.4 does not have it
			s.args = append(s.args, "--unsafe-no-fsync") // written data survives the process, if not the machine
		}
		if o.CA != nil {
			cert, key, err := o.CA.Issue("etcd", o.Host)
			if err != nil {
				return servers, err
			}
			s.args = append(s.args, "--cert-file="+cert, "--key-file="+key, "--client-cert-auth", "--trusted-ca-file="+o.CA.CertFile)
		}
		s.args = append(s.args, o.Flags...)
		if err := s.launch(); err != nil {
			return servers, err
		}
	}
	for _, s := range servers {
		if err := s.waitReady(); err != nil {
			return servers, err
		}
	}
	return servers, nil
}

// freePorts returns n addresses that no process listens on. Another process might
// take one before etcd does, but the kernel cycles through the ports, so that is
// unlikely.
func freePorts(host string, n int) ([]string, error) {
	var addrs []string
	for range n {
		l, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
		if err != nil {
			return nil, fmt.Errorf("find a free port: %w", err)
		}
		defer l.Close()
		addrs = append(addrs, l.Addr().String())
	}
	return addrs, nil
}

// launch starts the process, without waiting for it to be ready.
func (s *Server) launch() error {
	path := s.options.Program
	if path == "" {
		var err error
		if path, err = Binary("etcd"); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return err
	}
	s.starts++
	p := &process{ended: make(chan struct{}), log: filepath.Join(s.dir, fmt.Sprintf("log.%d", s.starts))}
	log, err := os.Create(p.log)
	if err != nil {
		return err
	}
	defer log.Close()
	command := s.options.Command
	if command == nil {
		command = func(name string, args ...string) (*exec.Cmd, func() error) {
			c := exec.Command(name, args...)
			return c, c.Start
		}
	}
	cmd, start := command(path, s.args...)
	cmd.Stdout, cmd.Stderr = log, log
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = new(syscall.SysProcAttr)
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	started := make(chan error)
	go func() {
		// The signal is sent when the thread that started the process ends,
		// so that thread must live until then.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := start()
		started <- err
		if err == nil {
			p.state = cmd.Wait()
			close(p.ended)
		}
	}()
	if err := <-started; err != nil {
		return fmt.Errorf("start etcd: %w", err)
	}
	p.os = cmd.Process
	s.process = p
	return nil
}

// waitReady waits for the log line that reports readiness, which works wherever the
// server runs.
func (s *Server) waitReady() error {
	late := time.After(testkit.Patience)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		text, err := os.ReadFile(s.process.log)
		if err != nil {
			return err
		}
		if bytes.Contains(text, []byte("ready to serve client requests")) {
			return nil
		}
		select {
		case <-s.process.ended:
			return fmt.Errorf("etcd %s exited: %v\n%s", s.name, s.process.state, s.Log())
		case <-late:
			return fmt.Errorf("etcd %s is not ready after %s\n%s", s.name, testkit.Patience, s.Log())
		case <-tick.C:
		}
	}
}

// Restart restarts a stopped server on the same address and data,
// and waits until it is ready.
func (s *Server) Restart(t testing.TB) {
	t.Helper()
	if err := s.launch(); err != nil {
		t.Fatal(err)
	}
	if err := s.waitReady(); err != nil {
		t.Fatal(err)
	}
}

// Kill ends the process like a crash, and waits for it.
func (s *Server) Kill() {
	if s == nil || s.process == nil {
		return
	}
	_ = s.process.os.Kill() // an error means that it has ended
	<-s.process.ended
	s.process = nil
}

// PID returns the process ID of a running server.
func (s *Server) PID() int { return s.process.os.Pid }

// Wipe removes the data of a stopped server.
func (s *Server) Wipe(t testing.TB) {
	t.Helper()
	if err := os.RemoveAll(filepath.Join(s.dir, "data")); err != nil {
		t.Fatal(err)
	}
}

// Log returns the end of the server's output from its last run.
func (s *Server) Log() string {
	const most = 8 << 10
	text, err := os.ReadFile(filepath.Join(s.dir, fmt.Sprintf("log.%d", s.starts)))
	if err != nil {
		return err.Error()
	}
	return string(text[max(0, len(text)-most):])
}

// Client returns a client of the server that is closed when the test ends. It has
// no user; if the server uses TLS, it has a certificate for root.
func (s *Server) Client(t testing.TB) *clientv3.Client {
	t.Helper()
	c := clientv3.Config{Endpoints: []string{s.Endpoint}, Logger: zap.NewNop()}
	if s.options.CA != nil {
		var err error
		if c.TLS, err = s.options.CA.clientTLS("root"); err != nil {
			t.Fatal(err)
		}
	}
	client, err := clientv3.New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	return client
}
