package etcdtls

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
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
	for name, bad := range map[string]string{
		"empty": "", "cut short": text[:len(text)/2], "another key": mixed.Text(), "no TLS": plain.Text(),
		"not an invitation": "hello", "not base64": prefix + "***",
	} {
		_, err := ParseInvitation(bad)
		if err == nil {
			t.Errorf("%s: accepted", name)
		} else if len(err.Error()) > 120 || strings.Contains(err.Error(), "PRIVATE") {
			t.Errorf("%s: %v", name, err)
		}
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
