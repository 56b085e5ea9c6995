package etcdtls

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/twillnet/twill/internal/atomicfile"
)

// Files in the directory of an Authority.
const (
	authorityCert = "ca.crt"
	authorityKey  = "ca.key"
	serverCert    = "server.crt"
	serverKey     = "server.key"
	endpointFile  = "endpoint" // where the server was last reached, for Invite
)

// notBefore and notAfter bound the validity of all certificates. The latter is
// the date that RFC 5280 §4.1.2.5 assigns to certificates without an
// expiration.
var (
	notBefore = time.Unix(0, 0).UTC()
	notAfter  = time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)
)

// PEM block types, RFC 7468.
const (
	pemCert = "CERTIFICATE"
	pemKey  = "PRIVATE KEY"
)

// Authority signs the certificates of one cluster.
type Authority struct {
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// OpenAuthority reads the authority in dir. The error wraps fs.ErrNotExist if
// there is none.
func OpenAuthority(dir string) (*Authority, error) {
	a := &Authority{dir: dir}
	var err error
	if a.cert, err = readCert(filepath.Join(dir, authorityCert)); err != nil {
		return nil, err
	}
	if a.key, err = readKey(filepath.Join(dir, authorityKey)); err != nil {
		return nil, err
	}
	if !a.key.PublicKey.Equal(a.cert.PublicKey) {
		return nil, fmt.Errorf("%s and %s do not belong together: remove %s and invite all nodes again", authorityCert, authorityKey, dir)
	}
	return a, nil
}

// CreateAuthority makes a new authority in dir, which only its owner may read. It
// replaces an existing one.
func CreateAuthority(dir string) (*Authority, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	a := &Authority{dir: dir}
	var err error
	if a.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, err
	}
	template, err := newTemplate("twill cluster")
	if err != nil {
		return nil, err
	}
	template.IsCA, template.BasicConstraintsValid = true, true
	template.KeyUsage = x509.KeyUsageCertSign
	der, err := x509.CreateCertificate(rand.Reader, template, template, a.key.Public(), a.key)
	if err != nil {
		return nil, err
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		return nil, err
	}
	// The certificate is written last: if it exists, the key is complete.
	if err := writeKey(filepath.Join(dir, authorityKey), a.key); err != nil {
		return nil, err
	}
	return a, atomicfile.Write(filepath.Join(dir, authorityCert), encodeCert(der), secretMode)
}

// ServerFiles are the files that a server needs to identify itself and to
// verify its clients.
type ServerFiles struct{ CA, Cert, Key string }

// Server writes a new certificate and key for the server at addr, and records
// that address for later invitations.
func (a *Authority) Server(addr netip.AddrPort) (ServerFiles, error) {
	files := ServerFiles{
		CA:   filepath.Join(a.dir, authorityCert),
		Cert: filepath.Join(a.dir, serverCert),
		Key:  filepath.Join(a.dir, serverKey),
	}
	cert, key, err := a.issue("etcd", x509.ExtKeyUsageServerAuth, addr.Addr().AsSlice())
	if err != nil {
		return files, err
	}
	return files, errors.Join(
		atomicfile.Write(files.Key, key, secretMode),
		atomicfile.Write(files.Cert, cert, secretMode),
		atomicfile.Write(filepath.Join(a.dir, endpointFile), []byte("https://"+addr.String()+"\n"), secretMode))
}

// Invite makes an Invitation for one more node to the server that Server was last
// called for.
func (a *Authority) Invite() (*Invitation, error) {
	endpoint, err := os.ReadFile(filepath.Join(a.dir, endpointFile))
	if err != nil {
		return nil, err
	}
	cert, key, err := a.issue("node", x509.ExtKeyUsageClientAuth)
	if err != nil {
		return nil, err
	}
	return &Invitation{
		Endpoint: strings.TrimSpace(string(endpoint)),
		CA:       string(encodeCert(a.cert.Raw)), Cert: string(cert), Key: string(key),
	}, nil
}

// issue returns a new certificate and its key, as PEM.
func (a *Authority) issue(name string, usage x509.ExtKeyUsage, addrs ...net.IP) (cert, key []byte, err error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	template, err := newTemplate(name)
	if err != nil {
		return nil, nil, err
	}
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.ExtKeyUsage = []x509.ExtKeyUsage{usage}
	template.IPAddresses = addrs
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, private.Public(), a.key)
	if err != nil {
		return nil, nil, err
	}
	key, err = encodeKey(private)
	return encodeCert(der), key, err
}

func newTemplate(name string) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	return &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{Organization: []string{"twill"}, CommonName: name},
		NotBefore:    notBefore,
		NotAfter:     notAfter,
	}, nil
}

func encodeCert(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: pemCert, Bytes: der})
}

func encodeKey(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: pemKey, Bytes: der}), nil
}

func writeKey(path string, key *ecdsa.PrivateKey) error {
	text, err := encodeKey(key)
	if err != nil {
		return err
	}
	return atomicfile.Write(path, text, secretMode)
}

// secretMode is of all files: only their owner may read them.
const secretMode = 0o600

func readCert(path string) (*x509.Certificate, error) {
	der, err := readPEM(path, pemCert)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return cert, nil
}

func readKey(path string) (*ecdsa.PrivateKey, error) {
	der, err := readPEM(path, pemKey)
	if err != nil {
		return nil, err
	}
	key, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	private, ok := key.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("%s: want an ECDSA key, not %T", path, key)
	}
	return private, nil
}

func readPEM(path, kind string) ([]byte, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(text)
	if block == nil || block.Type != kind {
		return nil, fmt.Errorf("%s: want a PEM block %q", path, kind)
	}
	return block.Bytes, nil
}
