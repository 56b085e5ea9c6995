package connectivity

import (
	"encoding/xml"
	"fmt"
	"io"
	"strings"

	"github.com/twillnet/twill/internal/doctor"
)

// The elements of JUnit's format that readers of it agree on.
type (
	junitSuites struct {
		XMLName xml.Name     `xml:"testsuites"`
		Name    string       `xml:"name,attr"`
		Suites  []junitSuite `xml:"testsuite"`
	}
	junitSuite struct {
		Name     string      `xml:"name,attr"`
		Tests    int         `xml:"tests,attr"`
		Failures int         `xml:"failures,attr"`
		Errors   int         `xml:"errors,attr"`
		Skipped  int         `xml:"skipped,attr"`
		Cases    []junitCase `xml:"testcase"`
	}
	junitCase struct {
		Class   string     `xml:"classname,attr"`
		Name    string     `xml:"name,attr"`
		Seconds string     `xml:"time,attr"`
		Failure *junitText `xml:"failure"`
		Error   *junitText `xml:"error"`
		Skipped *junitText `xml:"skipped"`
	}
	junitText struct {
		Message string `xml:"message,attr"`
		Text    string `xml:",chardata"`
	}
)

// WriteJUnit writes the report as JUnit's XML, with a suite for each node that was asked:
// a case for each test from there, and one for each of doctor's bad findings.
func (r *Report) WriteJUnit(w io.Writer) error {
	all := junitSuites{Name: "twill connectivity"}
	for i := range r.Nodes {
		if r.Nodes[i].Asked {
			all.Suites = append(all.Suites, r.suite(&r.Nodes[i]))
		}
	}
	if _, err := io.WriteString(w, xml.Header); err != nil {
		return err
	}
	e := xml.NewEncoder(w)
	e.Indent("", "  ")
	if err := e.Encode(all); err != nil {
		return err
	}
	_, err := io.WriteString(w, "\n")
	return err
}

func (r *Report) suite(n *NodeReport) junitSuite {
	s := junitSuite{Name: "from " + n.Node.String()}
	asked := junitCase{Class: s.Name, Name: "asked", Seconds: "0"}
	if n.Problem != "" {
		asked.Error = text(n.Problem)
	}
	s.add(asked)
	for i := range r.Results {
		one := &r.Results[i]
		if one.From != n.Node {
			continue
		}
		for _, o := range one.Tests {
			c := junitCase{
				Class: "to " + one.To.String(), Name: one.family() + " " + o.Test,
				Seconds: fmt.Sprintf("%.6f", o.Millis/1000),
			}
			switch {
			case o.Skipped:
				c.Skipped = text(o.Detail)
			case !o.OK:
				c.Failure = text(o.Detail)
			}
			s.add(c)
		}
	}
	for _, f := range n.Findings {
		if f.Level == doctor.Bad {
			c := junitCase{Class: "doctor", Name: f.Check, Seconds: "0", Failure: text(f.Text)}
			c.Failure.Text = f.Remedy
			s.add(c)
		}
	}
	return s
}

func (s *junitSuite) add(c junitCase) {
	s.Cases = append(s.Cases, c)
	s.Tests++
	switch {
	case c.Failure != nil:
		s.Failures++
	case c.Error != nil:
		s.Errors++
	case c.Skipped != nil:
		s.Skipped++
	}
}

// text returns a message of one line.
func text(message string) *junitText {
	return &junitText{Message: strings.ReplaceAll(message, "\n", " ")}
}
