//go:build !noetcd

package etcd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/twillnet/twill/internal/lab/etcdtest"
	"github.com/twillnet/twill/internal/lab/testkit"
	"github.com/twillnet/twill/lease"
)

const password = "correct horse battery staple"

// withUsers runs an etcd that wants a user: node may read the config and write
// leases, and has no other rights; guest has none at all.
func withUsers(t *testing.T, flags ...string) (*etcdtest.Server, *network) {
	t.Helper()
	server := etcdtest.Start(t, etcdtest.Options{Flags: flags})
	n := networkOn(t, server, ipv4Only)
	ctx := n.ctx()
	check := func(_ any, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, user := range []string{"root", "node", "guest"} {
		check(n.client.UserAdd(ctx, user, password))
		check(n.client.RoleAdd(ctx, user))
		check(n.client.UserGrantRole(ctx, user, user))
	}
	subnets := n.prefix + "/subnets/"
	check(n.client.RoleGrantPermission(ctx, "node", n.prefix+"/config", "", clientv3.PermissionType(clientv3.PermRead)))
	check(n.client.RoleGrantPermission(ctx, "node", subnets, clientv3.GetPrefixRangeEnd(subnets), clientv3.PermissionType(clientv3.PermReadWrite)))
	check(n.client.AuthEnable(ctx))
	root, err := clientv3.New(clientv3.Config{Endpoints: []string{server.Endpoint}, Username: "root", Password: password, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	n.client = root
	return server, n
}

func as(user, password string) func(*Options) {
	return func(o *Options) { o.Username, o.Password = user, NewSecret(password) }
}

func TestAWrongPasswordIsReportedAtOnceAndNeverShown(t *testing.T) {
	t.Parallel()
	_, n := withUsers(t)
	const wrong = "incorrect donkey"
	o := Options{Endpoints: n.endpoints, Prefix: n.prefix, Logger: n.store(as("node", password)).log}
	as("node", wrong)(&o)
	_, err := Open(n.ctx(), o)
	if !errors.Is(err, rpctypes.ErrAuthFailed) || !strings.Contains(err.Error(), "log in: ") || !strings.Contains(err.Error(), "check --etcd-username and --etcd-password") {
		t.Errorf("got %v", err)
	}
	if text := fmt.Sprintf("%v %+v %s", err, o, n.log); strings.Contains(text, "donkey") {
		t.Errorf("the password is shown: %s", text)
	}
	// Without a user, and with one that has no rights.
	for user, want := range map[string]string{"": "set --etcd-username and --etcd-password", "guest": "grant the user's role read access to " + n.prefix + "/config"} {
		s := n.store(func(o *Options) {
			if user != "" {
				as(user, password)(o)
			}
		})
		if _, err := s.Config(n.ctx()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("user %q: got %v, want %s", user, err, want)
		}
	}
}

func TestAUserNeedsRightsForConfigAndSubnetsOnly(t *testing.T) {
	t.Parallel()
	_, n := withUsers(t)
	s := n.store(as("node", password))
	own := n.acquire(s, node(1), "10.5.52.0/24")
	w := n.watch(s)
	w.snapshot()
	n.put("subnets/10.5.1.0-24", value(2))
	w.until("10.5.1.0-24 of 192.0.2.2", "10.5.52.0-24 of 192.0.2.1")
	if _, err := s.Renew(n.ctx(), own); err != nil {
		t.Error(err)
	}
	if leases, err := s.Leases(n.ctx()); err != nil || len(leases) != 2 {
		t.Errorf("got %v, %v", leases, err)
	}
	if _, err := s.SetConfig(n.ctx(), []byte(ipv4Only)); !errors.Is(err, rpctypes.ErrPermissionDenied) || !strings.Contains(err.Error(), "write config") {
		t.Errorf("got %v", err)
	}
}

// TestAnExpiredLoginIsRepeated has etcd forget its tokens, as it does when it
// restarts and when they are not used.
func TestAnExpiredLoginIsRepeated(t *testing.T) {
	t.Parallel()
	server, n := withUsers(t, "--auth-token-ttl=1")
	s := n.store(as("node", password))
	own := n.acquire(s, node(1), "10.5.52.0/24")
	w := n.watch(s)
	w.snapshot()
	server.Kill()
	server.Restart(t)
	if _, err := s.Renew(n.ctx(), own); err != nil {
		t.Error(err)
	}
	n.put("subnets/10.5.1.0-24", value(2))
	w.until("10.5.1.0-24 of 192.0.2.2", "10.5.52.0-24 of 192.0.2.1")
	w.notLost()
}

func TestTLSWantsTheRightAuthorityAndACertificate(t *testing.T) {
	t.Parallel()
	ca, stranger := etcdtest.NewAuthority(t), etcdtest.NewAuthority(t)
	server := etcdtest.Start(t, etcdtest.Options{CA: ca})
	n := networkOn(t, server, ipv4Only)
	cert, key, err := ca.Issue("node", "")
	if err != nil {
		t.Fatal(err)
	}
	strangeCert, strangeKey, err := stranger.Issue("node", "")
	if err != nil {
		t.Fatal(err)
	}
	good := func(o *Options) { o.CAFile, o.CertFile, o.KeyFile = ca.CertFile, cert, key }
	n.acquire(n.store(good), node(1))
	for _, tt := range []struct {
		name   string
		change func(*Options)
		want   []string
	}{
		{"another authority", func(o *Options) { good(o); o.CAFile = stranger.CertFile }, []string{"x509: certificate signed by unknown authority", "check --etcd-cafile"}},
		{"no authority", func(o *Options) { good(o); o.CAFile = "" }, []string{"x509: certificate signed by unknown authority", "check --etcd-cafile"}},
		{"no certificate", func(o *Options) { o.CAFile = ca.CertFile }, []string{"check --etcd-certfile"}},
		{"a stranger's certificate", func(o *Options) { o.CAFile, o.CertFile, o.KeyFile = ca.CertFile, strangeCert, strangeKey }, []string{"check --etcd-certfile"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			err := n.cutOff(n.store(tt.change), tt.want...)
			for _, want := range tt.want {
				if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), want) {
					t.Errorf("got %v, want %s", err, want)
				}
			}
		})
	}
}

func TestAClientCertificateIsReadAgainForEachConnection(t *testing.T) {
	t.Parallel()
	ca, stranger := etcdtest.NewAuthority(t), etcdtest.NewAuthority(t)
	server := etcdtest.Start(t, etcdtest.Options{CA: ca})
	n := networkOn(t, server, ipv4Only)
	cert, key, err := stranger.Issue("node", "")
	if err != nil {
		t.Fatal(err)
	}
	s := n.store(func(o *Options) { o.CAFile, o.CertFile, o.KeyFile = ca.CertFile, cert, key })
	got := make(chan error, 1)
	ctx := n.ctx()
	go func() {
		_, err := s.Acquire(ctx, node(1), lease.Previous{})
		got <- err
	}()
	testkit.Eventually(t, "the log says that the certificate is refused", func() bool { return len(n.log.Lines("check --etcd-certfile")) > 0 })
	newCert, newKey, err := ca.Issue("node", "")
	if err != nil {
		t.Fatal(err)
	}
	for from, to := range map[string]string{newCert: cert, newKey: key} {
		if err := os.Rename(from, to); err != nil {
			t.Fatal(err)
		}
	}
	if err := <-got; err != nil {
		t.Error(err)
	}
}
