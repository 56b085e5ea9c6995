//go:build !nokube

package kube_test

import (
	"context"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"

	"github.com/twillnet/twill/internal/lab/testkit"
	"github.com/twillnet/twill/lease"
	"github.com/twillnet/twill/lease/kube"
	"github.com/twillnet/twill/lease/kube/layout"
)

// A URL replaces the server of a kubeconfig, whose credentials stay; a URL alone has none.
func TestServerAndCredentialsAreThoseOfFlannelsFlags(t *testing.T) {
	asked := make(chan string, 1)
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case asked <- r.Header.Get("Authorization"):
		default:
		}
		http.NotFound(w, r)
	})
	server, plain := httptest.NewTLSServer(handler), httptest.NewServer(handler)
	defer server.Close()
	defer plain.Close()
	authority := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	kubeconfig := func(server string) string {
		path := filepath.Join(t.TempDir(), "kubeconfig")
		testkit.Must(t, os.WriteFile(path, fmt.Appendf(nil, `apiVersion: v1
kind: Config
current-context: it
contexts: [{name: other, context: {cluster: other, user: other}}, {name: it, context: {cluster: it, user: it}}]
clusters: [{name: it, cluster: {server: %q, certificate-authority-data: %s}}, {name: other, cluster: {server: "http://192.0.2.1"}}]
users: [{name: it, user: {token: secret}}, {name: other, user: {token: wrong}}]
`, server, base64.StdEncoding.EncodeToString(authority)), 0o600))
		return path
	}
	for _, tt := range []struct {
		name   string
		source layout.Source
		want   string // the credentials that the server gets
	}{
		{"a kubeconfig", layout.Source{Kubeconfig: kubeconfig(server.URL)}, "Bearer secret"},
		{"both", layout.Source{Kubeconfig: kubeconfig("https://192.0.2.2"), APIURL: server.URL}, "Bearer secret"},
		{"a URL", layout.Source{APIURL: plain.URL}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.source.ConfigFile = filepath.Join(t.TempDir(), "net-conf.json")
			testkit.Must(t, os.WriteFile(tt.source.ConfigFile, []byte(netConf), 0o600))
			store, err := kube.Open(kube.Options{Source: tt.source, Node: "n1", Logger: slog.New(slog.DiscardHandler)})
			testkit.Must(t, err)
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				_, _ = store.Acquire(ctx, attrsOf("192.0.2.11"), lease.Previous{}) // there is no such node
			}()
			got := testkit.Receive(t, "the server is asked", asked)
			cancel()
			<-ended
			select {
			case <-asked: // a request that was under way
			default:
			}
			if got != tt.want {
				t.Errorf("the server got the credentials %q, want %q", got, tt.want)
			}
		})
	}
}
