package etcdtls

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// handshake lets a client and the server of an authority meet, and returns what
// the server says of the client.
func handshake(t *testing.T, files ServerFiles, name string, client *tls.Config) (serverSide, clientSide error) {
	t.Helper()
	cert, err := tls.LoadX509KeyPair(files.Cert, files.Key)
	if err != nil {
		t.Fatal(err)
	}
	ca, err := os.ReadFile(files.CA)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	client.ServerName = name
	result := make(chan error, 1)
	go func() {
		s := tls.Server(a, &tls.Config{Certificates: []tls.Certificate{cert}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert})
		err := s.Handshake()
		a.Close()
		result <- err
	}()
	clientSide = tls.Client(b, client).Handshake()
	b.Close()
	return <-result, clientSide
}

// config is the TLS configuration that an invitation makes.
func config(t *testing.T, i *Invitation) *tls.Config {
	t.Helper()
	cert, err := tls.X509KeyPair([]byte(i.Cert), []byte(i.Key))
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM([]byte(i.CA)) {
		t.Fatal("no authority")
	}
	return &tls.Config{Certificates: []tls.Certificate{cert}, RootCAs: pool}
}

func newCluster(t *testing.T, addr string) (*Authority, ServerFiles) {
	t.Helper()
	a, err := CreateAuthority(filepath.Join(t.TempDir(), "tls"))
	if err != nil {
		t.Fatal(err)
	}
	files, err := a.Server(netip.MustParseAddrPort(addr))
	if err != nil {
		t.Fatal(err)
	}
	return a, files
}

func TestInvitedNodeAndServerKnowEachOther(t *testing.T) {
	for _, addr := range []string{"192.0.2.11:2379", "[2001:db8::11]:2379"} {
		created, files := newCluster(t, addr)
		a, err := OpenAuthority(created.dir) // as "twill invite" does
		if err != nil {
			t.Fatal(err)
		}
		i, err := a.Invite()
		if err != nil {
			t.Fatal(err)
		}
		i, err = ParseInvitation("  " + i.Text() + "\n")
		if err != nil {
			t.Fatal(err)
		}
		if i.Endpoint != "https://"+addr {
			t.Errorf("endpoint %s, want https://%s", i.Endpoint, addr)
		}
		host := netip.MustParseAddrPort(addr).Addr().String()
		if s, c := handshake(t, files, host, config(t, i)); s != nil || c != nil {
			t.Errorf("%s: server: %v, client: %v", addr, s, c)
		}
	}
}

func TestNodeWithoutInvitationIsRefused(t *testing.T) {
	a, files := newCluster(t, "192.0.2.11:2379")
	other, _ := newCluster(t, "192.0.2.11:2379")
	invited, err := a.Invite()
	if err != nil {
		t.Fatal(err)
	}
	stranger, err := other.Invite()
	if err != nil {
		t.Fatal(err)
	}
	noCert := config(t, invited)
	noCert.Certificates = nil
	if s, _ := handshake(t, files, "192.0.2.11", noCert); s == nil {
		t.Error("a client without a certificate is accepted")
	}
	foreign := config(t, stranger)
	foreign.RootCAs = config(t, invited).RootCAs
	if s, _ := handshake(t, files, "192.0.2.11", foreign); s == nil {
		t.Error("a certificate of another cluster is accepted")
	}
	if _, c := handshake(t, files, "192.0.2.12", config(t, invited)); c == nil {
		t.Error("a server at another address is accepted")
	}
	if _, c := handshake(t, files, "192.0.2.11", config(t, stranger)); c == nil {
		t.Error("the server of another cluster is accepted")
	}
}

func TestSecretsAreForTheirOwnerOnly(t *testing.T) {
	a, _ := newCluster(t, "192.0.2.11:2379")
	i, err := a.Invite()
	if err != nil {
		t.Fatal(err)
	}
	joined := filepath.Join(t.TempDir(), "etcd")
	if _, err := i.Install(joined); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{a.dir, joined} {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			info, err := d.Info()
			if err == nil && info.Mode().Perm()&0o077 != 0 {
				t.Errorf("%s has mode %v", path, info.Mode())
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
	}
}

func TestDamagedInvitationIsRefusedAndNotQuoted(t *testing.T) {
	a, _ := newCluster(t, "192.0.2.11:2379")
	i, err := a.Invite()
	if err != nil {
		t.Fatal(err)
	}
	text := i.Text()
	mixed := *i
	other, err := a.Invite()
	if err != nil {
		t.Fatal(err)
	}
	mixed.Key = other.Key
	plain := *i
	plain.Endpoint = "http://192.0.2.11:2379"
	endpoint := func(e string) string { bad := *i; bad.Endpoint = e; return bad.Text() }
	cluster, _ := newCluster(t, "192.0.2.11:2379")
	foreign, err := cluster.Invite()
	if err != nil {
		t.Fatal(err)
	}
	foreign.CA = i.CA
	server := *i
	cert, key, err := a.issue("etcd", x509.ExtKeyUsageServerAuth)
	if err != nil {
		t.Fatal(err)
	}
	server.Cert, server.Key = string(cert), string(key)
	for name, bad := range map[string]string{
		"empty": "", "cut short": text[:len(text)/2], "another key": mixed.Text(), "no TLS": plain.Text(),
		"not an invitation": "hello", "not base64": prefix + "***",
		"a byte short": text[:len(text)-1], "a line twice": text + "\n" + text, "another version": "twill-join-2." + text[len(prefix):],
		"too long": text + strings.Repeat(" ", MaxText), "64 kB of base64": prefix + strings.Repeat("A", MaxText-len(prefix)),
		"null": prefix + "bnVsbA", "a list": prefix + "W10", "nested": prefix + base64.RawURLEncoding.EncodeToString(bytes.Repeat([]byte("["), 40_000)),
		"the authority of another cluster": foreign.Text(), "a certificate of a server": server.Text(),
		"a command in the endpoint":  endpoint("https://192.0.2.11:2379/;reboot"),
		"variables in the endpoint":  endpoint("https://192.0.2.11:2379\nLD_PRELOAD=/tmp/x"),
		"a password in the endpoint": endpoint("https://user:secret@192.0.2.11:2379"),
		"a terminal escape":          endpoint("https://192.0.2.11:2379\x1b[2J"),
		"no port":                    endpoint("https://192.0.2.11"), "a zone": endpoint("https://[fe80::1%eth0;id]:2379"),
	} {
		_, err := ParseInvitation(bad)
		if err == nil {
			t.Errorf("%s: accepted", name)
		} else if len(err.Error()) > 120 || strings.Contains(err.Error(), "PRIVATE") || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Of invitations that are accepted at the same time into one directory, one is in force
// afterwards, whole; the others are refused.
func TestConcurrentInvitationsAreNotMixed(t *testing.T) {
	a, _ := newCluster(t, "192.0.2.11:2379")
	dir := filepath.Join(t.TempDir(), "etcd")
	var all sync.WaitGroup
	var written atomic.Int32
	for range 8 {
		i, err := a.Invite()
		if err != nil {
			t.Fatal(err)
		}
		all.Go(func() {
			for range 20 {
				switch _, err := i.Install(dir); {
				case err == nil:
					written.Add(1)
				case !strings.Contains(err.Error(), "repeat the command"):
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	if written.Load() == 0 {
		t.Error("none was written")
	}
	if _, err := tls.LoadX509KeyPair(filepath.Join(dir, "node.crt"), filepath.Join(dir, "node.key")); err != nil {
		t.Errorf("mixed: %v", err)
	}
	left, err := filepath.Glob(filepath.Join(dir, ".*.new"))
	if err != nil || left != nil {
		t.Errorf("left: %q, %v", left, err)
	}
}

func TestAuthorityThatDoesNotFitItsKeyIsRefused(t *testing.T) {
	a, _ := newCluster(t, "192.0.2.11:2379")
	b, _ := newCluster(t, "192.0.2.11:2379")
	key, err := os.ReadFile(filepath.Join(b.dir, authorityKey))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(a.dir, authorityKey), key, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenAuthority(a.dir); err == nil || !strings.Contains(err.Error(), "do not belong together") {
		t.Errorf("%v", err)
	}
	if _, err := OpenAuthority(t.TempDir()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("an empty directory: %v", err)
	}
}

func FuzzParseInvitation(f *testing.F) {
	f.Add("twill-join-1.e30")
	f.Add("twill-join-1.")
	f.Fuzz(func(t *testing.T, text string) {
		if i, err := ParseInvitation(text); err == nil && i.check() != nil {
			t.Error("accepted what does not check")
		}
	})
}
