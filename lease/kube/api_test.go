//go:build !nokube

package kube_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/twillnet/twill/internal/lab/kubetest"
	"github.com/twillnet/twill/internal/lab/testkit"
	"github.com/twillnet/twill/lease"
	"github.com/twillnet/twill/lease/kube"
	"github.com/twillnet/twill/lease/kube/layout"
)

// Tests against a real API server are called TestKube; "make test-kubernetes" runs
// them.

const prefix = layout.DefaultPrefix + "/"

// netConf is the network configuration of most tests.
const netConf = `{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}`

// subject is a store of the node n1, and what it has sent.
type subject struct {
	*kube.Store
	t    *testing.T
	c    *kubetest.Cluster
	path string // of the network configuration
	log  *testkit.Log

	mu     sync.Mutex
	set    lease.Set
	config *lease.Config
	errs   []error // since the last update without
	own    *lease.Lease
	end    context.CancelFunc
}

func attrsOf(ip string) lease.Attrs {
	return lease.Attrs{
		PublicIP: netip.MustParseAddr(ip), BackendType: "vxlan",
		BackendData: json.RawMessage(`{"VNI":1,"VtepMAC":"12:c6:65:89:b4:e3","Backends":["vxlan","udp"]}`),
	}
}

// open makes a store of node n1. change may be nil.
func open(t *testing.T, c *kubetest.Cluster, change func(*kube.Options)) *subject {
	t.Helper()
	s := &subject{t: t, c: c, path: filepath.Join(t.TempDir(), "net-conf.json"), log: new(testkit.Log)}
	testkit.Must(t, os.WriteFile(s.path, []byte(netConf), 0o600))
	o := kube.Options{
		Source: layout.Source{Kubeconfig: c.Kubeconfig(kubetest.FlannelToken), ConfigFile: s.path}, Node: "n1", Condition: true,
		Logger: slog.New(slog.NewTextHandler(s.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	if change != nil {
		change(&o)
	}
	store, err := kube.Open(o)
	testkit.Must(t, err)
	s.Store = store
	t.Cleanup(func() {
		if s.end != nil {
			s.end()
		}
		if t.Failed() {
			t.Logf("log of the store:\n%s", s.log)
		}
	})
	return s
}

// run acquires a lease and watches until the test ends. As the daemon does it
// renews the lease whenever that is called lost, and acquires another where that
// fails.
func (s *subject) run() {
	s.t.Helper()
	own, err := s.Acquire(s.t.Context(), attrsOf("192.0.2.11"), lease.Previous{})
	testkit.Must(s.t, err)
	s.own = own
	s.watch()
	testkit.Eventually(s.t, "there is a snapshot", func() bool { return s.has("") })
}

func (s *subject) watch() {
	ctx, cancel := context.WithCancel(context.Background())
	updates := make(chan lease.Update)
	var running sync.WaitGroup
	running.Go(func() { _ = s.Watch(ctx, updates) })
	running.Go(func() {
		for {
			select {
			case u := <-updates:
				s.take(ctx, u)
			case <-ctx.Done():
				return
			}
		}
	})
	s.end = sync.OnceFunc(func() { cancel(); running.Wait() })
}

func (s *subject) take(ctx context.Context, u lease.Update) {
	if errors.Is(u.Err, lease.ErrLost) {
		go s.keep(ctx)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if u.Err != nil {
		s.errs = append(s.errs, u.Err)
	} else {
		s.errs = nil
	}
	if u.Config != nil {
		s.config = u.Config
	}
	s.set.Apply(u)
}

// keep does what the daemon does about a lease that is lost.
func (s *subject) keep(ctx context.Context) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l, err := s.Renew(ctx, s.own)
	if errors.Is(err, lease.ErrLost) {
		l, err = s.Acquire(ctx, s.own.Attrs, lease.Previous{})
	}
	if err == nil {
		s.own = l
	}
}

// has says whether all leases are as given: "10.244.1.0/24=192.0.2.11 …" in the
// order of subnets; empty: whether there is any.
func (s *subject) has(want string) bool {
	got := s.leases()
	return got == want || want == "" && got != ""
}

// lease returns the lease of the own node.
func (s *subject) lease() *lease.Lease {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.own
}

func (s *subject) leases() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []string
	for _, l := range s.set.Leases() {
		for _, p := range l.Subnets() {
			all = append(all, fmt.Sprintf("%s=%s", p, l.PublicIP))
		}
	}
	return strings.Join(all, " ")
}

func (s *subject) expect(want string) {
	s.t.Helper()
	testkit.Eventually(s.t, "the leases are "+want, func() bool { return s.has(want) }, s.leases)
}

// logs waits for a line of the log.
func (s *subject) logs(text string) {
	s.t.Helper()
	testkit.Eventually(s.t, "the log says "+text, func() bool { return strings.Contains(s.log.String(), text) })
}

// lastErr returns the last error that no update has come after.
func (s *subject) lastErr() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.errs) == 0 {
		return nil
	}
	return s.errs[len(s.errs)-1]
}

// peer are the annotations of a node of stock flannel.
func peer(ip string) map[string]string {
	return map[string]string{
		prefix + "kube-subnet-manager": "true", prefix + "backend-type": "vxlan", prefix + "public-ip": ip,
		prefix + "backend-data": `{"VNI":1,"VtepMAC":"12:c6:65:89:b4:e4"}`,
	}
}

// patched makes annotations a merge patch.
func patched(m map[string]string) map[string]any {
	p := map[string]any{}
	for k, v := range m {
		p[k] = v
	}
	return p
}

// annotated waits until node n1 has annotations, under flannel's prefix.
func (s *subject) annotated(want map[string]string) {
	s.t.Helper()
	testkit.Eventually(s.t, fmt.Sprintf("n1 is annotated with %v", want), func() bool {
		got := s.c.Node("n1").OurAnnotations(prefix)
		for k, v := range want {
			if got[k] != v {
				return false
			}
		}
		return true
	}, func() string { return s.c.Node("n1").String() })
}

var written = map[string]string{
	"kube-subnet-manager": "true", "backend-type": "vxlan", "public-ip": "192.0.2.11",
	"backend-data": `{"VNI":1,"VtepMAC":"12:c6:65:89:b4:e3"}`,
}
