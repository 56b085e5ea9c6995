//go:build !noembed

package embedetcd

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"go.etcd.io/bbolt"
	bbolterrors "go.etcd.io/bbolt/errors"
	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.etcd.io/etcd/server/v3/embed"

	"github.com/twillnet/twill/internal/etcdtls"
)

// Built reports whether this build includes an etcd.
const Built = true

const (
	// quota bounds the database, in bytes. A lease takes about 200, and history is
	// compacted after an hour. quota also determines how much address space is
	// mapped: etcd's default of 10 GiB would exceed that of 32-bit hosts.
	quota = 256 << 20
	// history is how long old revisions are kept.
	history = "1h"
	// oldFiles is the number of obsolete logs and snapshots to keep; a log takes
	// 64 MB.
	oldFiles = 1
	// lockWait is how long another process may take to release the database.
	lockWait = time.Second
	// maxStreams bounds the concurrent requests and watches of one connection; a
	// node has one stream for its watches and one for each request.
	maxStreams = 64
	// pingEvery and pingWait detect connections whose client is gone.
	pingEvery, pingWait = 30 * time.Second, 20 * time.Second
	// closeWait bounds how long requests in progress may delay the shutdown. By
	// then the data has long been written.
	closeWait = 2 * time.Second
)

// Server is a running etcd.
type Server struct {
	etcd   *embed.Etcd
	front  *front // nil if no other host is served
	log    *core
	failed chan error
}

// Start starts the etcd and waits until it answers. On failure nothing is left
// running, and the error names the directory or address concerned.
func Start(ctx context.Context, cfg Config) (_ *Server, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("start embedded etcd in %s: %w", cfg.Dir, err)
		}
	}()
	if err := checkDir(cfg.Dir); err != nil {
		return nil, err
	}
	if err := checkDatabase(filepath.Join(cfg.Dir, "member", "snap", "db")); err != nil {
		return nil, err
	}
	log := newCore(cfg.Logger)
	c := etcdConfig(cfg)
	c.ZapLoggerBuilder = embed.NewZapLoggerBuilder(log.logger())
	e, err := startEtcd(c, log)
	if err != nil {
		return nil, log.explain(err)
	}
	s := &Server{etcd: e, log: log, failed: make(chan error, 1)}
	select {
	case <-e.Server.ReadyNotify():
		if s.front, err = cfg.open(); err != nil {
			break
		}
		log.enter(running)
		go s.await(cfg.Dir)
		return s, nil
	case <-log.dead:
		err = unusable(log.why, log.cause)
	case err = <-e.Err():
	case <-e.Server.StopNotify():
		err = log.explain(errors.New("it stopped"))
	case <-ctx.Done():
		err = ctx.Err()
	}
	s.Close()
	return nil, err
}

// startEtcd starts etcd and returns an error even where etcd does not: etcd panics or ends
// the process if it cannot read or write its data.
func startEtcd(c *embed.Config, log *core) (*embed.Etcd, error) {
	type result struct {
		etcd *embed.Etcd
		err  error
	}
	started := make(chan result, 1)
	go func() {
		var r result
		defer func() {
			if p := recover(); p != nil {
				r.err = unusable(fmt.Sprint(p), nil)
			}
			started <- r
		}()
		r.etcd, r.err = embed.StartEtcd(c)
	}()
	select {
	case r := <-started:
		return r.etcd, r.err
	case <-log.dead:
		return nil, unusable(log.why, log.cause)
	}
}

// unusable is the error for data with which etcd cannot continue. If the cause is a
// kernel error, the data itself is intact.
func unusable(why string, cause error) error {
	var errno syscall.Errno
	switch {
	case !errors.As(cause, &errno):
		return fmt.Errorf("the data cannot be used (%s): move the directory away to start without data, or restore a copy of it", why)
	case errno == syscall.ENOSPC, errno == syscall.EDQUOT:
		return fmt.Errorf("the disk is full (%s): free space", why)
	}
	return fmt.Errorf("the data cannot be read or written (%s): correct the cause and start again", why)
}

// etcdConfig converts cfg to etcd's configuration.
func etcdConfig(cfg Config) *embed.Config {
	c := embed.NewConfig()
	c.Name, c.Dir = "twill", cfg.Dir
	own := url.URL{Scheme: "http", Host: Endpoint(cfg.Listen)[len("http://"):]}
	c.ListenClientUrls, c.AdvertiseClientUrls = []url.URL{own}, []url.URL{own}
	if network, address := cfg.behind(); network == "unix" {
		c.ListenClientUrls = []url.URL{{Scheme: network, Path: address}}
	}
	// There are no other members, so there is no listener for them. The address
	// only names this member.
	c.ListenPeerUrls = nil
	c.InitialCluster = c.InitialClusterFromName(c.Name)
	c.QuotaBackendBytes = quota
	c.AutoCompactionMode, c.AutoCompactionRetention = embed.CompactorModePeriodic, history
	c.MaxSnapFiles, c.MaxWalFiles = oldFiles, oldFiles
	// Bound the resources that a client can use, and the time until a vanished client
	// is detected.
	c.MaxConcurrentStreams = maxStreams
	c.GRPCKeepAliveInterval, c.GRPCKeepAliveTimeout = pingEvery, pingWait
	c.EnableGRPCGateway = false // web pages could write through it
	return c
}

// serverFiles returns the server's certificates, issued by the authority that
// is created at the first start.
func serverFiles(cfg Config) (etcdtls.ServerFiles, error) {
	dir := TLSDir(cfg.Dir)
	a, err := etcdtls.OpenAuthority(dir)
	if errors.Is(err, os.ErrNotExist) {
		a, err = etcdtls.CreateAuthority(dir)
	}
	if err != nil {
		return etcdtls.ServerFiles{}, err
	}
	return a.Server(cfg.Listen)
}

// behind returns where the etcd listens: on the loopback or, if other hosts are served on
// all addresses, which include the loopback, on a unix socket.
func (c *Config) behind() (network, address string) {
	if c.Listen.IsValid() && c.Listen.Addr().IsUnspecified() {
		return "unix", filepath.Join(c.Dir, "client.sock")
	}
	return "tcp", Endpoint(c.Listen)[len("http://"):]
}

// open opens the front for other hosts; it returns nil if none are served.
func (c *Config) open() (*front, error) {
	if !c.Listen.IsValid() || c.Listen.Addr().IsLoopback() {
		return nil, nil
	}
	var tls *transport.TLSInfo
	if c.secure() {
		files, err := serverFiles(*c)
		if err != nil {
			return nil, fmt.Errorf("certificates for other nodes: %w", err)
		}
		tls = &transport.TLSInfo{TrustedCAFile: files.CA, CertFile: files.Cert, KeyFile: files.Key, ClientCertAuth: true}
	}
	network, address := c.behind()
	return openFront(c.Listen, tls, network, address)
}

// checkDir creates the directory, or refuses one that others may read: the data
// describes the whole network.
func checkDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return fmt.Errorf("other users can access the directory (mode %04o): chmod 700 it, or name another with --embedded-etcd", mode)
	}
	return nil
}

// checkDatabase detects another process that has the database open, for which etcd
// would wait forever, and a file that is not a database, for which it would end the
// process.
func checkDatabase(path string) error {
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	db, err := openDatabase(path)
	switch {
	case err == nil:
		return db.Close()
	case errors.Is(err, bbolterrors.ErrTimeout):
		return errors.New("another process has the data open: stop it, or name another directory with --embedded-etcd")
	}
	return fmt.Errorf("database %s: %w: move the directory away to start without data, or restore a copy of it", path, err)
}

// openDatabase opens the database at path. It turns bbolt's panics into errors.
func openDatabase(path string) (db *bbolt.DB, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%v", p)
		}
	}()
	return bbolt.Open(path, 0o600, &bbolt.Options{ReadOnly: true, Timeout: lockWait})
}

// await waits until the etcd ends, and reports that unless Close is the reason.
func (s *Server) await(dir string) {
	var err error
	select {
	case <-s.log.dead:
		err = fmt.Errorf("directory %s: %w", dir, unusable(s.log.why, s.log.cause))
	case err = <-s.etcd.Err(): // nil if the channel is closed
	case <-s.etcd.Server.StopNotify():
		err = errors.New("it stopped by itself; the log says why")
	}
	if err != nil && s.log.is(running) {
		s.failed <- err
	}
}

// Failed receives the reason why the etcd ended by itself. After that it can
// only be closed; everything written before is in its directory.
func (s *Server) Failed() <-chan error { return s.failed }

// Close stops the etcd. When it returns all data is written and the database is
// unlocked, unless the etcd has failed: then only the end of the process
// unlocks it.
func (s *Server) Close() {
	// Stop the server before its listeners: in the other order it would wait for
	// the watches of other nodes, which do not end.
	s.log.enter(ending)
	if s.front != nil {
		s.front.close()
	}
	stopped, closed := make(chan struct{}), make(chan struct{})
	go func() {
		s.etcd.Server.Stop()
		close(stopped)
		s.etcd.Close()
		close(closed)
	}()
	select {
	case <-stopped:
	case <-s.log.dead: // Close would wait for the failed goroutine
		return
	}
	select {
	case <-closed:
	case <-time.After(closeWait):
	}
}
