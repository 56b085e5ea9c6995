//go:build !nokube

package kube

import (
	"context"

	"github.com/twillnet/twill/lease"
	"github.com/twillnet/twill/lease/internal/filewatch"
)

// Config returns the network configuration in the file or, if that has become
// invalid, the last valid one.
func (s *Store) Config(context.Context) (*lease.Config, error) {
	c, err := s.readConfig()
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil {
		s.config = c
	} else if s.config == nil {
		return nil, err
	}
	return s.config, nil
}

// PublishedText returns the text of the network configuration, valid or not.
func (s *Store) PublishedText(context.Context) ([]byte, error) { return s.access.o.ReadConfig() }

// WaitConfig returns the network configuration as soon as it is valid. Until
// then it calls note with the error, once for each version of the file.
func (s *Store) WaitConfig(ctx context.Context, note func(error)) (*lease.Config, error) {
	w := s.configWatch()
	defer w.Close()
	for last := ""; ; {
		w.Arm()
		c, err := s.Config(ctx)
		if err == nil {
			return c, nil
		}
		if err.Error() != last {
			last = err.Error()
			note(err)
		}
		if err := w.Wait(ctx); err != nil {
			return nil, err
		}
	}
}

func (s *Store) configWatch() *filewatch.Notifier {
	return &filewatch.Notifier{Path: s.path, What: "network configuration", Log: s.log}
}

func (s *Store) readConfig() (*lease.Config, error) {
	text, err := s.access.o.ReadConfig()
	if err != nil {
		return nil, err
	}
	return s.access.o.ParseConfig(text)
}
