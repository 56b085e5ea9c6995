package command

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
)

// greet is a program whose one command records what it was called with.
func greet(t *testing.T, args ...string) (stdout string, names []string, loud bool, err error) {
	t.Helper()
	p := Program{
		Name: "greet", About: "greet greets.", More: "That is all.", Version: func() string { return "v1" },
		Commands: []Command{{Name: "hello", Summary: "greet people", Run: func(_ context.Context, c *Call) error {
			l := c.Bool("loud", false, "shout")
			var help bool
			var err error
			if names, help, err = c.ParseOperands("Greets people.", "NAME..."); help || err != nil {
				return err
			}
			loud = *l
			return nil
		}}, {Name: "bye", Summary: "leave", Run: func(_ context.Context, c *Call) error {
			_, err := c.ParseFlags("Leaves.")
			return err
		}}},
	}
	var out bytes.Buffer
	err = p.Run(t.Context(), args, &out, &bytes.Buffer{})
	return out.String(), names, loud, err
}

func TestFlagsMayFollowOperands(t *testing.T) {
	_, names, loud, err := greet(t, "hello", "Ann", "--loud", "Bob")
	if err != nil || !loud || strings.Join(names, " ") != "Ann Bob" {
		t.Errorf("got %q, loud %t, %v", names, loud, err)
	}
}

func TestHelpAndVersionArePrinted(t *testing.T) {
	for args, want := range map[string]string{
		"--help":       "greet greets.\n\nUsage: greet COMMAND [flags]\n\n  hello        greet people\n",
		"hello --help": "Usage: greet hello [flags] NAME...\n\nGreets people.\n\n  -loud\n",
		"bye -h":       "Usage: greet bye [flags]\n\nLeaves.\n",
		"version":      "greet v1\n",
		"--version":    "greet v1\n",
	} {
		out, _, _, err := greet(t, strings.Fields(args)...)
		if err != nil || !strings.HasPrefix(out, want) {
			t.Errorf("greet %s: got %q, %v, want %q", args, out, err, want)
		}
	}
}

func TestWrongCommandLineIsAUsageError(t *testing.T) {
	for args, want := range map[string]string{
		"":               "no command given; commands are hello, bye, completion, version; see greet --help",
		"hullo":          `unknown command "hullo"; commands are hello, bye, completion, version`,
		"hello --quiet":  "hello: flag provided but not defined: -quiet",
		"bye bye":        `bye: unexpected argument "bye"`,
		"version please": `version: unexpected argument "please"`,
	} {
		_, _, _, err := greet(t, strings.Fields(args)...)
		var usage *UsageError
		if !errors.As(err, &usage) || err.Error() != want {
			t.Errorf("greet %s: got %v, want %q", args, err, want)
		}
	}
}
