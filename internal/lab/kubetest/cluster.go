// Package kubetest runs a real Kubernetes control plane for tests: kube-apiserver on
// an etcd and, optionally, the controllers that assign podCIDRs and those that run
// pods, on free ports, with data in a directory that is removed after the test. The
// API server can be killed and restarted. There are no kubelets: nodes are objects that
// the test, or a kubelet that it runs, creates.
package kubetest

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/twillnet/twill/internal/lab/etcdtest"
	"github.com/twillnet/twill/internal/lab/testkit"
)

// Options configure a cluster. The zero Options are an API server on the
// loopback without a controller that assigns podCIDRs.
type Options struct {
	// Host is the address of the API server; empty means 127.0.0.1.
	Host string
	// ClusterCIDR lists the networks that podCIDRs are assigned from, separated by
	// commas; if it is empty, none are assigned.
	ClusterCIDR string
	// Workloads makes pods of DaemonSets run, with service accounts, on nodes whose
	// kubelets register, and gives Services their endpoints: kube-scheduler and the
	// controllers for this run too. It needs a ClusterCIDR. The test has to create
	// flannel's ClusterRole.
	Workloads bool
	// Command creates the command that runs a program and the function that starts it,
	// for example in a network namespace; nil means exec.Command and its Start.
	Command func(name string, args ...string) (cmd *exec.Cmd, start func() error)
	// Dial connects the test to the API server; nil means the dialer of package net.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
}

// Cluster is a control plane. Its methods must be called from one goroutine, except
// for those that send API requests.
type Cluster struct {
	// URL is the URL of the API server, and CAFile holds the authority that signed its
	// certificate.
	URL, CAFile string

	t       testing.TB
	dir     string
	options Options
	etcd    *etcdtest.Server
	args    []string // of the API server
	api     *process // nil while it does not run
	client  *http.Client
	starts  int
}

// services are the networks of the services' addresses. The first address of each is that
// of the API server, which is not reachable there without a kube-proxy.
const services = "10.96.0.0/16,fd00:10:96::/112"

// Tokens of users that need no service account.
const (
	adminToken = "admin"
	// FlannelToken belongs to a user who has the rights of flannel's ClusterRole
	// while Grant is in force.
	FlannelToken = "flannel"
)

// Start runs a cluster until the test ends.
func Start(t testing.TB, o Options) *Cluster {
	t.Helper()
	if o.Host == "" {
		o.Host = "127.0.0.1"
	}
	c := &Cluster{t: t, dir: t.TempDir(), options: o}
	c.etcd = etcdtest.Start(t, etcdtest.Options{Command: o.Command})
	c.prepare()
	t.Cleanup(c.Kill)
	c.Restart()
	if !o.Workloads {
		c.grantRights()
		c.Grant()
	}
	if o.ClusterCIDR != "" {
		c.control()
	}
	return c
}

// Binary returns the path of a program that "make kubernetes" builds.
func Binary(t testing.TB, name string) string {
	t.Helper()
	_, file, _, _ := runtime.Caller(0)
	path := filepath.Join(filepath.Dir(file), "..", "..", "..", "bin", "peers", "kubernetes", name)
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("%s is not built: run make kubernetes in the root of the repository", name)
	}
	return path
}

// prepare writes the files of the API server and builds its arguments.
func (c *Cluster) prepare() {
	c.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	testkit.Must(c.t, err)
	der, err := x509.MarshalECPrivateKey(key)
	testkit.Must(c.t, err)
	c.write("sa.key", string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der})))
	c.write("tokens.csv", adminToken+",admin,1,system:masters\n"+FlannelToken+",flannel,2\n")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	testkit.Must(c.t, err)
	_, port, err := net.SplitHostPort(l.Addr().String())
	testkit.Must(c.t, err, l.Close())
	c.URL = "https://" + net.JoinHostPort(c.options.Host, port)
	c.CAFile = filepath.Join(c.dir, "certs", "apiserver.crt")
	key509 := filepath.Join(c.dir, "sa.key")
	c.args = []string{
		"--etcd-servers=" + c.etcd.Endpoint, "--bind-address=" + c.options.Host, "--advertise-address=" + c.options.Host,
		"--secure-port=" + port, "--cert-dir=" + filepath.Dir(c.CAFile), "--service-cluster-ip-range=" + services,
		"--service-account-issuer=https://kubernetes.default.svc", "--service-account-key-file=" + key509,
		"--service-account-signing-key-file=" + key509, "--token-auth-file=" + filepath.Join(c.dir, "tokens.csv"),
		"--authorization-mode=RBAC",
		"--shutdown-delay-duration=0s", "--allow-privileged=true", "--kubelet-preferred-address-types=InternalIP",
	}
	if !c.options.Workloads {
		// No controller creates the accounts of pods, and nothing needs the API server's
		// Service.
		c.args = append(c.args, "--disable-admission-plugins=ServiceAccount", "--endpoint-reconciler-type=none")
	}
	dial := c.options.Dial
	if dial == nil {
		dial = new(net.Dialer).DialContext
	}
	c.client = &http.Client{Transport: &http.Transport{
		DialContext:       dial,
		TLSClientConfig:   &tls.Config{InsecureSkipVerify: true}, // the test has itself started the server
		ForceAttemptHTTP2: true,
	}}
}

func (c *Cluster) write(name, text string) string {
	c.t.Helper()
	path := filepath.Join(c.dir, name)
	testkit.Must(c.t, os.WriteFile(path, []byte(text), 0o600))
	return path
}

// Restart starts the API server on the same address and data, and waits until it
// is ready.
func (c *Cluster) Restart() {
	c.t.Helper()
	c.starts++
	c.api = c.start("kube-apiserver", fmt.Sprintf("apiserver.%d.log", c.starts), c.args)
	testkit.Eventually(c.t, "the API server is ready", func() bool {
		select {
		case <-c.api.ended:
			c.t.Fatalf("the API server exited:\n%s", c.api.tail())
		default:
		}
		code, _, err := c.ask(http.MethodGet, "/readyz", "", nil)
		return err == nil && code == http.StatusOK
	})
}

// Kill ends the API server like a crash, and waits for it.
func (c *Cluster) Kill() {
	c.api.kill()
	c.api = nil
	c.client.CloseIdleConnections()
}

// control starts the controllers, and the scheduler if Workloads is set.
func (c *Cluster) control() {
	c.t.Helper()
	admin := "--kubeconfig=" + c.Kubeconfig(adminToken)
	controllers := "node-ipam-controller"
	if c.options.Workloads {
		controllers += ",node-lifecycle-controller,daemonset-controller,endpointslice-controller,serviceaccount-controller,root-ca-certificate-publisher-controller"
		c.t.Cleanup(c.start("kube-scheduler", "scheduler.log", []string{admin, "--leader-elect=false", "--secure-port=0"}).kill)
	}
	c.t.Cleanup(c.start("kube-controller-manager", "manager.log", []string{
		admin, "--controllers=" + controllers, "--leader-elect=false", "--root-ca-file=" + c.CAFile,
		"--allocate-node-cidrs=true", "--cluster-cidr=" + c.options.ClusterCIDR, "--service-cluster-ip-range=" + services,
		"--secure-port=0",
	}).kill)
}

// process is a running program.
type process struct {
	os    *os.Process
	ended chan struct{}
	log   string
}

// start starts a program, which ends with the test's process at the latest.
func (c *Cluster) start(program, log string, args []string) *process {
	c.t.Helper()
	path := Binary(c.t, program)
	command := c.options.Command
	if command == nil {
		command = func(name string, args ...string) (*exec.Cmd, func() error) {
			cmd := exec.Command(name, args...)
			return cmd, cmd.Start
		}
	}
	cmd, start := command(path, args...)
	p := &process{ended: make(chan struct{}), log: filepath.Join(c.dir, log)}
	out, err := os.Create(p.log)
	testkit.Must(c.t, err)
	defer out.Close()
	cmd.Stdout, cmd.Stderr = out, out
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = new(syscall.SysProcAttr)
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	started := make(chan error)
	go func() {
		// The signal is sent when the thread that started the process ends.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := start()
		started <- err
		if err == nil {
			_ = cmd.Wait()
			close(p.ended)
		}
	}()
	testkit.Must(c.t, <-started)
	p.os = cmd.Process
	c.t.Cleanup(func() {
		if c.t.Failed() {
			c.t.Logf("log of %s:\n%s", program, p.tail())
		}
	})
	return p
}

// tail returns the end of the log.
func (p *process) tail() string {
	const most = 4 << 10
	text, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	return string(text[max(0, len(text)-most):])
}

func (p *process) kill() {
	if p == nil {
		return
	}
	_ = p.os.Kill() // an error means that it has ended
	<-p.ended
}

// ReplaceAuthority ends the API server and starts it with another certificate and
// authority, which CAFile holds from then on.
func (c *Cluster) ReplaceAuthority() {
	c.t.Helper()
	c.Kill()
	testkit.Must(c.t, os.RemoveAll(filepath.Dir(c.CAFile)))
	c.Restart()
}

// Kubeconfig writes a kubeconfig with a token and returns its path.
func (c *Cluster) Kubeconfig(token string) string {
	return c.KubeconfigOf("token: " + token)
}

// KubeconfigOf writes a kubeconfig with a user given as a line of YAML.
func (c *Cluster) KubeconfigOf(user string) string {
	c.t.Helper()
	return c.write(fmt.Sprintf("kubeconfig.%d", time.Now().UnixNano()), fmt.Sprintf(`apiVersion: v1
kind: Config
current-context: it
contexts: [{name: it, context: {cluster: it, user: it}}]
clusters: [{name: it, cluster: {server: %q, certificate-authority: %q}}]
users:
- name: it
  user: {%s}
`, c.URL, c.CAFile, user))
}
