package etcdtls

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/atomicfile"
)

// prefix marks the text of an Invitation, and its version.
const prefix = "twill-join-1."

// MaxText bounds the text of an Invitation, in bytes; one takes about 2,500.
const MaxText = 64 << 10

// Invitation is what a node needs to reach the etcd of another. It is a secret:
// its holder can change the leases.
type Invitation struct {
	Endpoint string // URL of the etcd
	CA       string // PEM, as are the others
	Cert     string
	Key      string
}

// Text returns the invitation as one line.
func (i *Invitation) Text() string {
	b, err := json.Marshal(i)
	if err != nil {
		panic(err) // strings
	}
	return prefix + base64.RawURLEncoding.EncodeToString(b)
}

// ParseInvitation reads what Text returned, with white space around it.
func ParseInvitation(text string) (*Invitation, error) {
	if len(text) > MaxText {
		return nil, fmt.Errorf("not an invitation: it is longer than %d bytes", MaxText)
	}
	encoded, ok := strings.CutPrefix(strings.TrimSpace(text), prefix)
	if !ok {
		return nil, fmt.Errorf("not an invitation: it starts with %q, as \"twill invite\" prints it", prefix)
	}
	b, err := base64.RawURLEncoding.DecodeString(encoded)
	if err != nil {
		return nil, errors.New("the invitation is damaged or cut short: copy all of the line")
	}
	var i Invitation
	if err := json.Unmarshal(b, &i); err != nil {
		return nil, errors.New("the invitation is damaged: copy all of the line")
	}
	return &i, i.check()
}

// check returns what is wrong with an invitation, without quoting it.
func (i *Invitation) check() error {
	// The endpoint is printed as part of a command, and written to a file of variables.
	host, ok := strings.CutPrefix(i.Endpoint, "https://")
	if at, err := netip.ParseAddrPort(host); !ok || err != nil || at.Addr().Zone() != "" {
		return errors.New("the invitation names no https endpoint by its address")
	}
	pair, err := tls.X509KeyPair([]byte(i.Cert), []byte(i.Key))
	if err != nil {
		return errors.New("the certificate and the key of the invitation do not belong together")
	}
	authority := x509.NewCertPool()
	if !authority.AppendCertsFromPEM([]byte(i.CA)) {
		return errors.New("the invitation has no certificate of an authority")
	}
	client := []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	if _, err := pair.Leaf.Verify(x509.VerifyOptions{Roots: authority, KeyUsages: client, CurrentTime: notBefore}); err != nil {
		return errors.New("the certificate of the invitation is not of its authority, or not for a node")
	}
	return nil
}

// Files are the paths of the files that Install wrote.
type Files struct {
	CA, Cert, Key string
	// Environment is a file that sets the variables by which twilld and flanneld
	// find the others (EnvironmentFile= of systemd).
	Environment string
}

// lock keeps others from writing to the files of dir until unlock is called or the process
// ends. Only the owner of the directory can hold it.
func lock(dir string) (unlock func() error, err error) {
	f, err := os.OpenFile(filepath.Join(dir, ".lock"), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, secretMode)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("another invitation is being written to %s: wait, and repeat the command", dir), f.Close())
	}
	return f.Close, nil
}

// Install writes the invitation to files in dir, which only their owner may read. It fails
// while another process writes one there.
func (i *Invitation) Install(dir string) (_ Files, err error) {
	f := Files{
		CA: filepath.Join(dir, "ca.crt"), Cert: filepath.Join(dir, "node.crt"), Key: filepath.Join(dir, "node.key"),
		Environment: filepath.Join(dir, "environment"),
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return f, err
	}
	unlock, err := lock(dir)
	if err != nil {
		return f, err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	environment := fmt.Sprintf("FLANNELD_ETCD_ENDPOINTS=%s\nFLANNELD_ETCD_CAFILE=%s\nFLANNELD_ETCD_CERTFILE=%s\nFLANNELD_ETCD_KEYFILE=%s\n",
		i.Endpoint, f.CA, f.Cert, f.Key)
	for _, file := range []struct{ path, text string }{
		{f.Key, i.Key}, {f.Cert, i.Cert}, {f.CA, i.CA}, {f.Environment, environment},
	} {
		if err := atomicfile.Write(file.path, []byte(file.text), secretMode); err != nil {
			return f, err
		}
	}
	return f, nil
}
