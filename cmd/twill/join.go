package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/twillnet/twill/internal/command"
	"github.com/twillnet/twill/internal/etcdtls"
)

const (
	defaultAuthority = "/var/lib/twill/etcd/tls"
	defaultJoined    = "/etc/twill/etcd"
)

const aboutInvite = `Prints an invitation for one more node, which "twill join" reads there. Run it on the
node whose twilld has the etcd (--embedded-etcd --embedded-etcd-listen=IP). It makes a
new key and certificate each time. The line is a secret: it lets a node change the
leases.

  twill invite | ssh NODE twill join`

const aboutJoin = `Reads the line that "twill invite" printed on the first node, from FILE or standard
input, writes the key and the certificates in it to files, and prints the flags that
make twilld use them.`

func runInvite(_ context.Context, c *command.Call) error {
	dir := c.String("dir", defaultAuthority, "`DIR` of the certificates: tls in the directory of --embedded-etcd")
	if help, err := c.ParseFlags(aboutInvite); help || err != nil {
		return err
	}
	authority, err := etcdtls.OpenAuthority(*dir)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("invite: no certificates in %s: start twilld here with --embedded-etcd and --embedded-etcd-listen=IP, or name the directory with --dir", *dir)
	}
	if err != nil {
		return fmt.Errorf("invite: %w", err)
	}
	invitation, err := authority.Invite()
	if err != nil {
		return fmt.Errorf("invite: %w", err)
	}
	_, err = fmt.Fprintln(c.Stdout, invitation.Text())
	return err
}

func runJoin(_ context.Context, c *command.Call) error {
	dir := c.String("dir", defaultJoined, "`DIR` to write the files to")
	files, help, err := c.ParseOperands(aboutJoin, "[FILE]")
	switch {
	case help || err != nil:
		return err
	case len(files) > 1:
		return c.Usagef("want one file at most")
	}
	text, err := readInvitation(files)
	if err != nil {
		return fmt.Errorf("join: read the invitation: %w", err)
	}
	invitation, err := etcdtls.ParseInvitation(text)
	if err != nil {
		return fmt.Errorf("join: %w", err)
	}
	f, err := invitation.Install(*dir)
	if err != nil {
		return fmt.Errorf("join: write the certificates: %w", err)
	}
	_, err = fmt.Fprintf(c.Stdout, `Certificates for %[1]s are in %[2]s. Start twilld with

  twilld --etcd-endpoints=%[1]s --etcd-cafile=%[3]s --etcd-certfile=%[4]s --etcd-keyfile=%[5]s

or let its systemd unit read the same from %[6]s (EnvironmentFile=).
`, invitation.Endpoint, *dir, f.CA, f.Cert, f.Key, f.Environment)
	return err
}

// readInvitation reads the named file, or standard input.
func readInvitation(files []string) (string, error) {
	in := io.Reader(os.Stdin)
	if len(files) == 1 && files[0] != "-" {
		f, err := os.Open(files[0])
		if err != nil {
			return "", err
		}
		defer f.Close()
		in = f
	}
	text, err := io.ReadAll(io.LimitReader(in, etcdtls.MaxText+1)) // one more, so that too much is noticed
	return string(text), err
}
