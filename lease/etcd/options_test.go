//go:build !noetcd

package etcd

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/twillnet/twill/internal/lab/etcdtest"
)

func TestOptionsThatCannotBeUsedAreRefusedWithTheFlag(t *testing.T) {
	dir := t.TempDir()
	rubbish := filepath.Join(dir, "rubbish.pem")
	if err := os.WriteFile(rubbish, []byte("rubbish"), 0o600); err != nil {
		t.Fatal(err)
	}
	cert, key, err := etcdtest.NewAuthority(t).Issue("node", "")
	if err != nil {
		t.Fatal(err)
	}
	https := []string{"https://192.0.2.1:2379"}
	for _, tt := range []struct {
		options Options
		want    string
	}{
		{Options{}, "etcd endpoints: none given; set one or more with --etcd-endpoints"},
		{Options{Endpoints: []string{"http://192.0.2.1:2379", "ftp://192.0.2.2"}}, `etcd endpoints: number 2, "ftp://192.0.2.2": want a URL such as "http://192.0.2.1:2379"; correct --etcd-endpoints`},
		{Options{Endpoints: []string{""}}, `etcd endpoints: number 1, "": want a URL`},
		{Options{Endpoints: []string{"http://192.0.2.1:port"}}, "etcd endpoints: number 1 is not a URL"},
		{Options{Endpoints: []string{"http://192.0.2.1:2379/v2"}}, "want a URL such as"},
		{Options{Endpoints: []string{"http://root:hunter2@192.0.2.1:2379"}}, "etcd endpoints: number 1, 192.0.2.1:2379, contains a user name; use --etcd-username and --etcd-password"},
		{Options{Endpoints: []string{"http://root:hunter2@192.0.2.1:port"}}, "etcd endpoints: number 1 is not a URL"},
		{Options{Endpoints: []string{"http://192.0.2.1", "https://192.0.2.2"}}, "http://192.0.2.1 and https://192.0.2.2: http and https cannot be mixed"},
		{Options{Endpoints: https, Username: "root"}, "set both --etcd-username and --etcd-password, or neither"},
		{Options{Endpoints: https, Password: NewSecret("hunter2")}, "set both --etcd-username and --etcd-password, or neither"},
		{Options{Endpoints: https, CAFile: filepath.Join(dir, "none.pem")}, "none.pem: no such file or directory; name another with --etcd-cafile"},
		{Options{Endpoints: https, CAFile: rubbish}, "rubbish.pem contains no PEM certificate; name another with --etcd-cafile"},
		{Options{Endpoints: https, CertFile: cert}, "set both --etcd-certfile and --etcd-keyfile, or neither"},
		{Options{Endpoints: https, CertFile: cert, KeyFile: rubbish}, "correct --etcd-certfile and --etcd-keyfile"},
		{Options{Endpoints: https, CertFile: key, KeyFile: cert}, "correct --etcd-certfile and --etcd-keyfile"},
		{Options{Endpoints: []string{"http://192.0.2.1:2379"}, CertFile: cert, KeyFile: rubbish}, "correct --etcd-certfile and --etcd-keyfile"},
	} {
		tt.options.Logger = slog.New(slog.NewTextHandler(io.Discard, nil))
		s, err := Open(context.Background(), tt.options)
		if err == nil {
			s.Close()
		}
		if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%+v:\n got %v\nwant %s", tt.options, err, tt.want)
		}
	}
}

// A server of gRPC ends such a connection at the fourth ping, which takes 40 s.
func TestConnectionWithoutARequestIsNotPinged(t *testing.T) {
	o := Options{Endpoints: []string{"http://192.0.2.1:2379"}, Prefix: DefaultPrefix}
	switch c, err := o.clientConfig(); {
	case err != nil:
		t.Error(err)
	case c.PermitWithoutStream || c.DialKeepAliveTime <= 0:
		t.Errorf("got pings every %s, without a request: %t; want pings during requests only", c.DialKeepAliveTime, c.PermitWithoutStream)
	}
}

func TestWhatOthersOnTheWireCouldReadIsLogged(t *testing.T) {
	ca := etcdtest.NewAuthority(t)
	for _, tt := range []struct {
		options Options
		want    []string
	}{
		{Options{Endpoints: []string{"http://192.0.2.1:2379"}}, nil},
		{Options{Endpoints: []string{"http://127.0.0.1:2379", "http://localhost:2379", "http://[::1]:2379", "127.0.0.1:2379"}, Username: "node"}, nil},
		{Options{Endpoints: []string{"https://192.0.2.1:2379"}, Username: "node", CAFile: ca.CertFile}, nil},
		{Options{Endpoints: []string{"http://192.0.2.1:2379"}, Username: "node"}, []string{"http://192.0.2.1:2379 is plain HTTP, so the password is sent in clear text"}},
		{Options{Endpoints: []string{"etcd.example:2379"}, CAFile: ca.CertFile}, []string{"etcd.example:2379 is plain HTTP, so the certificates are not used"}},
	} {
		if got := tt.options.exposures(); fmt.Sprint(got) != fmt.Sprint(tt.want) {
			t.Errorf("%v: got %q, want %q", tt.options.Endpoints, got, tt.want)
		}
	}
}

func TestASecretIsNeverFormatted(t *testing.T) {
	o := Options{Username: "node", Password: NewSecret("hunter2")}
	var log strings.Builder
	slog.New(slog.NewTextHandler(&log, nil)).Info("options", "password", o.Password, "all", o)
	slog.New(slog.NewJSONHandler(&log, nil)).Info("options", "password", o.Password)
	text, err := json.Marshal(struct{ P Secret }{o.Password})
	if err != nil {
		t.Fatal(err)
	}
	hidden := struct{ options Options }{o} // fmt calls no methods of such a field
	all := fmt.Sprintf("%s %v %+v %#v %q %s %s %+v", o.Password, o, o, o, o.Password, text, &log, hidden)
	if strings.Contains(all, "hunter") || !strings.Contains(all, "***") {
		t.Error(all)
	}
}
