//go:build !noembed

package embedetcd

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/twillnet/twill/internal/lab/testkit"
)

// at returns the Config of an etcd in a new directory.
func at(t *testing.T) Config {
	t.Helper()
	return Config{
		Dir:    filepath.Join(t.TempDir(), "state", "etcd"),
		Listen: testkit.FreePort(t),
		Logger: slog.New(slog.DiscardHandler),
	}
}

func start(t *testing.T, cfg Config) *Server {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), testkit.Patience)
	defer cancel()
	s, err := Start(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func client(t *testing.T, cfg Config) *clientv3.Client {
	t.Helper()
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{Endpoint(cfg.Listen)}, DialTimeout: testkit.Patience, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestDataOutlivesTheServer(t *testing.T) {
	cfg := at(t)
	s := start(t, cfg)
	if _, err := client(t, cfg).Put(t.Context(), "/a", "1"); err != nil {
		t.Fatal(err)
	}
	s.Close()
	s = start(t, cfg)
	defer s.Close()
	got, err := client(t, cfg).Get(t.Context(), "/a")
	if err != nil || len(got.Kvs) != 1 || string(got.Kvs[0].Value) != "1" {
		t.Errorf("/a: %v, %v", got, err)
	}
	if info, err := os.Stat(cfg.Dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("%v, %v, want mode 0700", info, err)
	}
}

func TestAPlainRunIsNotWorthALine(t *testing.T) {
	var log bytes.Buffer
	cfg := at(t)
	cfg.Logger = slog.New(slog.NewTextHandler(&log, nil))
	for range 2 { // the second time with data
		start(t, cfg).Close()
	}
	if log.Len() > 0 {
		t.Errorf("log:\n%s", &log)
	}
}

// TestCloseDoesNotWaitForWatches: other nodes' watches do not end by themselves.
func TestCloseDoesNotWaitForWatches(t *testing.T) {
	cfg := at(t)
	s := start(t, cfg)
	c := client(t, cfg)
	created := c.Watch(t.Context(), "/", clientv3.WithPrefix(), clientv3.WithCreatedNotify())
	if r := <-created; !r.Created {
		t.Fatalf("%+v", r)
	}
	closed := make(chan struct{})
	go func() { s.Close(); close(closed) }()
	testkit.Receive(t, "Close returns", closed)
	start(t, cfg).Close() // nobody has the data
}

func TestAnEtcdThatEndsByItselfSaysWhyAndCanBeClosed(t *testing.T) {
	for _, tt := range []struct {
		name string
		end  func(*Server)
		want string
	}{
		{"what it wrote has failed", func(s *Server) { s.log.logger().Fatal("failed to commit", zap.Error(syscall.ENOSPC)) },
			"directory %s: the disk is full (failed to commit (error: no space left on device)): free space"},
		{"it finds its data wrong", func(s *Server) { s.log.logger().Panic("unexpected index") },
			"directory %s: the data cannot be used (unexpected index): move the directory away"},
		{"no listener is left", func(s *Server) { s.etcd.Clients[0].Close() }, "mux: "},
		{"its server stops", func(s *Server) { s.etcd.Server.Stop() }, "stopped by itself"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg := at(t)
			s := start(t, cfg)
			go tt.end(s)
			err := testkit.Receive(t, "the failure is reported", s.Failed())
			if want := strings.Replace(tt.want, "%s", cfg.Dir, 1); !strings.Contains(err.Error(), want) {
				t.Errorf("got %v, want %s", err, want)
			}
			s.Close()
		})
	}
}

// TestStartRefusesWhatItCannotUse: without waiting, and saying what to do.
func TestStartRefusesWhatItCannotUse(t *testing.T) {
	for _, tt := range []struct {
		name  string
		cause func(t *testing.T, cfg *Config)
		want  []string
	}{
		{"data of a running etcd", func(t *testing.T, cfg *Config) {
			other := *cfg
			t.Cleanup(start(t, other).Close)
			cfg.Listen = testkit.FreePort(t)
		}, []string{"another process has the data open", "--embedded-etcd"}},
		{"port in use", func(t *testing.T, cfg *Config) {
			l, err := net.Listen("tcp", cfg.Listen.String())
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { l.Close() })
		}, []string{"address already in use"}},
		{"directory that others read", func(t *testing.T, cfg *Config) {
			if err := os.MkdirAll(cfg.Dir, 0o755); err != nil {
				t.Fatal(err)
			}
		}, []string{"mode 0755", "chmod 700"}},
		{"file in the directory's place", func(t *testing.T, cfg *Config) {
			if err := os.WriteFile(filepath.Dir(cfg.Dir), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}, []string{"not a directory"}},
		{"database that is none", func(t *testing.T, cfg *Config) {
			start(t, *cfg).Close()
			db := filepath.Join(cfg.Dir, "member", "snap", "db")
			if err := os.WriteFile(db, bytes.Repeat([]byte("junk"), 8192), 0o600); err != nil {
				t.Fatal(err)
			}
		}, []string{"member/snap/db", "move the directory away"}},
		{"log that is none", func(t *testing.T, cfg *Config) {
			start(t, *cfg).Close()
			wals, err := filepath.Glob(filepath.Join(cfg.Dir, "member", "wal", "0*.wal"))
			if err != nil || len(wals) == 0 {
				t.Fatalf("%v, %v", wals, err)
			}
			if err := os.WriteFile(wals[0], bytes.Repeat([]byte("junk"), 8192), 0o600); err != nil {
				t.Fatal(err)
			}
		}, []string{"the data cannot be used", "move the directory away"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg := at(t)
			tt.cause(t, &cfg)
			ctx, cancel := context.WithTimeout(context.Background(), testkit.Patience)
			defer cancel()
			s, err := Start(ctx, cfg)
			if err == nil {
				s.Close()
				t.Fatal("started")
			}
			for _, want := range append(tt.want, "start embedded etcd in "+cfg.Dir) {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%v\nlacks %q", err, want)
				}
			}
		})
	}
}
