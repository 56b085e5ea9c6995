package lastknown

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/lab/testkit"
	"github.com/twillnet/twill/lease"
	"github.com/twillnet/twill/lease/etcd"
	"github.com/twillnet/twill/lease/kube"
	"github.com/twillnet/twill/lease/kube/layout"
)

// port returns the address of a TCP port of this test that refuses connections or, if it
// listens, accepts them and never answers.
func port(t *testing.T, listens bool) string {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	testkit.Must(t, err)
	t.Cleanup(func() { unix.Close(fd) })
	testkit.Must(t, unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}))
	if listens {
		testkit.Must(t, unix.Listen(fd, 16))
	}
	addr, err := unix.Getsockname(fd)
	testkit.Must(t, err)
	return fmt.Sprintf("127.0.0.1:%d", addr.(*unix.SockaddrInet4).Port)
}

// The clients of real stores are replaced by what is known, whether connections are refused
// or nothing answers.
func TestKnownLeasesServeInPlaceOfRealStores(t *testing.T) {
	const config = `{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan", "VNI": 7}}`
	stores := map[string]func(t *testing.T, at string) Source{
		"etcd": func(t *testing.T, at string) Source {
			s, err := etcd.Open(t.Context(), etcd.Options{Endpoints: []string{"http://" + at}, Logger: new(testkit.Log).Logger()})
			testkit.Must(t, err)
			t.Cleanup(func() { _ = s.Close() })
			return s
		},
		"Kubernetes": func(t *testing.T, at string) Source {
			file := filepath.Join(t.TempDir(), "net-conf.json")
			testkit.Must(t, os.WriteFile(file, []byte(config), 0o600))
			s, err := kube.Open(kube.Options{Source: layout.Source{APIURL: "http://" + at, ConfigFile: file}, Node: "n1", Logger: new(testkit.Log).Logger()})
			testkit.Must(t, err)
			return s
		},
	}
	for store, open := range stores {
		for answer, listens := range map[string]bool{"closed port": false, "no answer": true} {
			t.Run(store+", "+answer, func(t *testing.T) {
				t.Parallel()
				src, path := newSource(t), filepath.Join(t.TempDir(), "leases")
				remember(t, src, path, time.Time{})
				began := time.Now()
				s := Open(open(t, port(t, listens)), Options{Path: path, Logger: new(testkit.Log).Logger()})
				if c, err := s.WaitConfig(t.Context(), func(error) {}); err != nil || c == nil {
					t.Fatalf("got config %+v, %v", c, err)
				}
				_, _, _ = s.NodeAddrs(t.Context())
				if own, err := s.Acquire(t.Context(), src.own.Attrs, lease.Previous{}); err != nil || !own.Equal(src.own) {
					t.Fatalf("got lease %+v, %v", own, err)
				}
				ctx, cancel := context.WithCancel(t.Context())
				updates, ended := make(chan lease.Update), make(chan error, 1)
				go func() { ended <- s.Watch(ctx, updates) }()
				if u := testkit.Receive(t, "the known leases", updates); !u.Snapshot || len(u.Put) != 2 {
					t.Errorf("it sent %+v", u)
				}
				t.Logf("served after %s", time.Since(began).Round(time.Millisecond))
				cancel()
				<-ended
			})
		}
	}
}
