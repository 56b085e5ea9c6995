package etcdtls

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"

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
	if u, err := url.Parse(i.Endpoint); err != nil || u.Scheme != "https" || u.Host == "" {
		return errors.New("the invitation names no https endpoint")
	}
	if _, err := tls.X509KeyPair([]byte(i.Cert), []byte(i.Key)); err != nil {
		return errors.New("the certificate and the key of the invitation do not belong together")
	}
	if !x509.NewCertPool().AppendCertsFromPEM([]byte(i.CA)) {
		return errors.New("the invitation has no certificate of an authority")
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

// Install writes the invitation to files in dir, which only their owner may read.
func (i *Invitation) Install(dir string) (Files, error) {
	f := Files{
		CA: filepath.Join(dir, "ca.crt"), Cert: filepath.Join(dir, "node.crt"), Key: filepath.Join(dir, "node.key"),
		Environment: filepath.Join(dir, "environment"),
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return f, err
	}
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
