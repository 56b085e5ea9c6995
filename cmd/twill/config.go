package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/twillnet/twill/internal/backend"
	"github.com/twillnet/twill/internal/command"
	"github.com/twillnet/twill/lease"
	"github.com/twillnet/twill/lease/etcd"
)

const aboutConfig = `get prints the network config. set replaces it with the one from FILE or standard input
("-", or no FILE) if every node can use it; otherwise it names the key that is wrong and
writes nothing. Running nodes apply a new config at once; twill status shows if a part of
it needs a restart.`

// maxConfig bounds what is read: etcd refuses requests of more than 1.5 MiB.
const maxConfig = 1 << 20

func runConfig(ctx context.Context, call *command.Call) error {
	c := newStoreCommand(call)
	rest, help, err := c.parse(ctx, aboutConfig, "get | set [FILE|-]")
	if help || err != nil {
		return err
	}
	switch {
	case len(rest) == 0:
		return c.Usagef("want get or set")
	case rest[0] == "get" && len(rest) == 1:
		if c.publishes() {
			parse := lease.ParseConfig
			if c.kube.On {
				parse = lease.ParseAssigned
			}
			return c.askPublished(ctx, func(ctx context.Context, p published) error {
				return getConfig(ctx, p.PublishedText, parse, c.Stdout, c.Stderr)
			})
		}
		return c.ask(ctx, func(ctx context.Context, s *etcd.Store) error {
			return getConfig(ctx, s.PublishedText, lease.ParseConfig, c.Stdout, c.Stderr)
		})
	case rest[0] == "set" && len(rest) <= 2:
		text, err := readConfig(append(rest, "-")[1])
		if err != nil {
			return err
		}
		if err := checkConfig(text, lease.ParseConfig); err != nil {
			return fmt.Errorf("config set: %w; nothing was written", err)
		}
		return c.ask(ctx, func(ctx context.Context, s *etcd.Store) error { return setConfig(ctx, s, text, c.Stdout, c.Stderr) })
	case rest[0] == "get" || rest[0] == "set":
		return c.Usagef("unexpected argument %q", rest[len(rest)-1])
	}
	return c.Usagef("unknown command %q; commands are get and set", rest[0])
}

// getConfig prints even an unusable config, so that it can be corrected, and writes
// the error to stderr.
func getConfig(ctx context.Context, read func(context.Context) ([]byte, error), parse parser, stdout, stderr io.Writer) error {
	text, err := read(ctx)
	if err != nil {
		return err
	}
	if err := checkConfig(text, parse); err != nil {
		fmt.Fprintln(stderr, "twill: config get:", err)
	}
	if !strings.HasSuffix(string(text), "\n") {
		text = append(text, '\n')
	}
	_, err = stdout.Write(text)
	return err
}

func setConfig(ctx context.Context, s *etcd.Store, text []byte, stdout, stderr io.Writer) error {
	for _, key := range unknownKeys(text) {
		fmt.Fprintf(stderr, "twill: config set: key %q has no meaning in twill or flannel; keys are %s\n", key, strings.Join(lease.ConfigKeys(), ", "))
	}
	c, err := s.SetConfig(ctx, text)
	if err != nil {
		return err
	}
	var networks []string
	for _, n := range c.Networks() {
		networks = append(networks, n.String())
	}
	if _, err = fmt.Fprintf(stdout, "written: network %s, backend %s\n", strings.Join(networks, ", "), c.Backend.Type); err != nil {
		return err
	}
	leases, err := s.Leases(ctx)
	if err != nil {
		return fmt.Errorf("config set: the config was written, but the leases that it affects are unknown: %w", err)
	}
	warnMisfits(stderr, c, leases)
	return nil
}

// warnMisfits warns about the leases that nodes cannot keep under the config c.
func warnMisfits(w io.Writer, c *lease.Config, leases []lease.Lease) {
	var misfits []string
	for _, l := range leases {
		if !c.HandsOut(l) {
			misfits = append(misfits, fmt.Sprintf("%s of %s", subnetText(l), nodeText(l)))
		}
	}
	const most = 3
	text := strings.Join(misfits[:min(len(misfits), most)], ", ")
	if len(misfits) > most {
		text += fmt.Sprintf(" and %d more", len(misfits)-most)
	}
	if len(misfits) > 0 {
		fmt.Fprintf(w, "twill: config set: %d of %d leases do not fit this config (%s): their nodes get other subnets when twilld restarts there\n",
			len(misfits), len(leases), text)
	}
}

func readConfig(name string) ([]byte, error) {
	in := io.ReadCloser(os.Stdin)
	if name == "-" {
		name = "standard input"
	} else {
		f, err := os.Open(name)
		if err != nil {
			return nil, fmt.Errorf("config set: %w", err)
		}
		defer f.Close()
		in = f
	}
	text, err := io.ReadAll(io.LimitReader(in, maxConfig+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("config set: read %s: %w", name, err)
	case len(text) > maxConfig:
		return nil, fmt.Errorf("config set: %s is longer than %d bytes; is it a network config?", name, maxConfig)
	}
	return text, nil
}

// parser reads a network config.
type parser func(text []byte) (*lease.Config, error)

// checkConfig returns an error if a node could not use the config.
func checkConfig(text []byte, parse parser) error {
	if len(text) == 0 {
		return errors.New("network config: the text is empty")
	}
	c, err := parse(text)
	if err != nil {
		return err
	}
	_, err = backend.SettingsOf(c, "")
	return err
}

// unknownKeys returns the keys of a valid config that have no meaning, in order.
func unknownKeys(text []byte) []string {
	var all map[string]json.RawMessage
	if json.Unmarshal(text, &all) != nil {
		return nil // lease.ParseConfig returns the error
	}
	var unknown []string
	for _, key := range slices.Sorted(maps.Keys(all)) {
		if !slices.ContainsFunc(lease.ConfigKeys(), func(k string) bool { return strings.EqualFold(k, key) }) {
			unknown = append(unknown, key)
		}
	}
	return unknown
}
