package source_test

import (
	"fmt"
	"net"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"slotfetch/fetch/fetchtest"
	"slotfetch/fetch/source"
)

// files is what the scripted servers have.
var files = map[string]*fetchtest.Image{"x.iso": image}

var saturday = time.Date(2020, 5, 2, 8, 0, 1, 0, time.UTC)

func reply(verb, text string) fetchtest.Script {
	return fetchtest.Script{Reply: map[string]string{verb: text}}
}

func ftpFailure(class source.Class, code int) outcome {
	later := "."
	if class == source.Temporary {
		later = " and may work later."
	}
	return failure(class, fmt.Sprintf("ftp_%d", code), fmt.Sprintf("The FTP server answered %d%s", code, later))
}

// TestFTPAnswers has the rows of the chaos table for FTP.
func TestFTPAnswers(t *testing.T) {
	bad := failure(source.Permanent, "malformed_answer", malformed)
	gone := failure(source.Temporary, "broken", broke)
	login := failure(source.Human, "ftp_login", "The FTP server refused the login. Check the credentials.")
	noFile := func(code int) outcome {
		return failure(source.Permanent, fmt.Sprintf("ftp_%d", code), fmt.Sprintf("The FTP server has no such file (%d).", code))
	}
	port := func(n int) outcome {
		return failure(source.Permanent, "ftp_data_port", fmt.Sprintf("The FTP server named data port %d, which is not allowed.", n))
	}
	surplus := failure(source.Permanent, "bad_resume", "The FTP server sent more than it announced.")
	noEPSV := func(pasv string) fetchtest.Script {
		return fetchtest.Script{Reply: map[string]string{"EPSV": "500 no", "PASV": pasv}}
	}
	for _, tc := range []struct {
		name   string
		script fetchtest.Script
		want   outcome
	}{
		{"good", fetchtest.Script{}, good(image)},
		{"greeting of many lines", fetchtest.Script{Banner: "220-Welcome\r\n220-to this\r\n220 server"}, good(image)},
		{"421 banner", fetchtest.Script{Banner: "421 too many users"}, ftpFailure(source.Temporary, 421)},
		{"530 banner", fetchtest.Script{Banner: "530 go away"}, failure(source.Human, "ftp_530", login.Message)},
		{"421 to USER", reply("USER", "421 too many users"), gone},
		{"530 to USER", reply("USER", "530 anonymous only"), login},
		{"530 to PASS", reply("PASS", "530 wrong"), login},
		{"421 to PASS", reply("PASS", "421 wait"), ftpFailure(source.Temporary, 421)},
		{"no password wanted", reply("USER", "230 come in"), good(image)},
		{"account wanted", reply("PASS", "332 account"), ftpFailure(source.Permanent, 332)},
		{"no FEAT", reply("FEAT", "500 what"), good(image)},
		{"no UTF8", fetchtest.Script{Reply: map[string]string{"FEAT": "211-\r\n UTF8\r\n211 End", "OPTS": "504 no"}}, good(image)},
		{"550 to RETR", reply("RETR", "550 no such file"), noFile(550)},
		{"553 to RETR", reply("RETR", "553 bad name"), noFile(553)},
		{"550 to SIZE and RETR", fetchtest.Script{Reply: map[string]string{"SIZE": "550 no", "RETR": "550 no"}}, noFile(550)},
		{"450 to RETR", reply("RETR", "450 busy"), ftpFailure(source.Temporary, 450)},
		{"425 to RETR", reply("RETR", "425 no data connection"), ftpFailure(source.Temporary, 425)},
		{"426 after half", fetchtest.Script{Fault: fetchtest.FIN, After: 1000, Done: "426 aborted"}, after(1000, ftpFailure(source.Temporary, 426))},
		{"421 after half", fetchtest.Script{Fault: fetchtest.FIN, After: 1000, Done: "421 going down"}, after(1000, ftpFailure(source.Temporary, 421))},
		{"226 after half", fetchtest.Script{Fault: fetchtest.FIN, After: 1000}, after(1000, gone)},
		{"451 after all", fetchtest.Script{Done: "451 disk trouble"}, after(64*kib, ftpFailure(source.Temporary, 451))},
		{"550 after all", fetchtest.Script{Done: "550 not a plain file"}, after(64*kib, noFile(550))},
		{"control closed, data flows on", fetchtest.Script{HangUp: true, After: 1000}, after(64*kib, gone)},
		{"no SIZE", reply("SIZE", "502 no"), good(image)},
		{"SIZE of -1", reply("SIZE", "213 -1"), good(image)},
		{"SIZE too large for a number", reply("SIZE", "213 99999999999999999999"), good(image)},
		{"SIZE is garbage", reply("SIZE", "213 many"), good(image)},
		{"SIZE too small", reply("SIZE", "213 1000"), surplus},
		{"surplus", fetchtest.Script{Surplus: 10}, surplus},
		{"MDTM refused", fetchtest.Script{Modified: saturday, Reply: map[string]string{"MDTM": "550 no"}}, good(image)},
		{"MDTM is garbage", fetchtest.Script{Modified: saturday, Reply: map[string]string{"MDTM": "213 yesterday"}}, good(image)},
		{"PASV", noEPSV(""), good(image)},
		{"PASV names another host", noEPSV("227 ok (127,0,0,9,{p1},{p2})"), good(image)},
		{"PASV names metadata", noEPSV("227 ok (169,254,169,254,{p1},{p2})"), good(image)},
		{"PASV garbage", noEPSV("227 what"), bad},
		{"PASV without numbers", noEPSV("227 ok (a,b,c,d,e,f)"), bad},
		{"PASV that makes the library panic", noEPSV("227 )x("), bad},
		{"PASV port 256743", noEPSV("227 ok (127,0,0,1,999,999)"), bad},
		{"PASV negative port", noEPSV("227 ok (127,0,0,1,-1,-1)"), bad},
		{"PASV port 22", noEPSV("227 ok (127,0,0,1,0,22)"), port(22)},
		{"PASV port 0", noEPSV("227 ok (127,0,0,1,0,0)"), port(0)},
		{"EPSV port 22", reply("EPSV", "229 ok (|||22|)"), port(22)},
		{"EPSV port 1023", reply("EPSV", "229 ok (|||1023|)"), port(1023)},
		{"EPSV garbage, then PASV", reply("EPSV", "229 )x("), good(image)},
		{"neither EPSV nor PASV", noEPSV("502 no"), ftpFailure(source.Permanent, 502)},
		{"no passive port free", fetchtest.Script{Reply: map[string]string{"EPSV": "421 no", "PASV": "421 no"}}, gone},
		{"HTTP greeting", fetchtest.Script{Banner: "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n"}, bad},
		{"garbage reply", reply("PASS", "what?"), bad},
		{"cut in a reply", reply("PASS", fetchtest.Cut), gone},
		{"reply flood to USER", fetchtest.Script{Flood: "USER"}, bad},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tc.script.Files = files
			s := fetchtest.NewFTP(t, tc.script)
			got, _ := attempt(t, patient(), source.Request{URL: parse(t, s.URL+"/x.iso"), Credentials: credentials()}, image, 0, source.Validator{})
			if got.Code == surplus.Code { // how much comes before it is noticed is up to the buffers
				got.Bytes, got.Head = 0, false
			}
			wantOutcome(t, tc.want, got)
			fetchtest.Await(t, "the end of the session", s.Next(t).Closed)
			if n := len(s.Sessions()); n != 1 {
				t.Errorf("%d sessions in one attempt", n)
			}
		})
	}
}

// TestFTPTimeouts: a server that falls silent anywhere ends the attempt after the idle limit.
func TestFTPTimeouts(t *testing.T) {
	const stall = 250 * time.Millisecond
	quiet := failure(source.Temporary, "stalled", silent)
	for _, tc := range []struct {
		name   string
		script fetchtest.Script
		want   outcome
	}{
		{"banner", fetchtest.Script{Banner: fetchtest.Silent}, quiet},
		{"SSH banner, which looks like the first line of many", fetchtest.Script{Banner: "SSH-2.0-OpenSSH_9.2p1"}, quiet},
		{"USER", reply("USER", fetchtest.Silent), quiet},
		{"PASS", reply("PASS", fetchtest.Silent), quiet},
		{"FEAT", reply("FEAT", fetchtest.Silent), quiet},
		{"TYPE", reply("TYPE", fetchtest.Silent), quiet},
		{"SIZE", reply("SIZE", fetchtest.Silent), quiet},
		{"MDTM", fetchtest.Script{Modified: saturday, Reply: map[string]string{"MDTM": fetchtest.Silent}}, quiet},
		{"RETR", reply("RETR", fetchtest.Silent), quiet},
		{"data", fetchtest.Script{Fault: fetchtest.Stall, After: 1000}, after(1000, quiet)},
		{"no reply after the data", fetchtest.Script{Done: fetchtest.Silent}, after(64*kib, quiet)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tc.script.Files = files
			s := fetchtest.NewFTP(t, tc.script)
			got, _ := attempt(t, quick(stall), source.Request{URL: parse(t, s.URL+"/x.iso")}, image, 0, source.Validator{})
			wantOutcome(t, tc.want, got)
			fetchtest.Await(t, "the end of the session", s.Next(t).Closed)
		})
	}
	t.Run("a byte at a time", func(t *testing.T) {
		s := fetchtest.NewFTP(t, fetchtest.Script{Files: files, Fault: fetchtest.Drip, After: 100, Pause: stall / 20})
		cfg := patient()
		cfg.LowSpeedTime = stall
		got, _ := attempt(t, cfg, source.Request{URL: parse(t, s.URL+"/x.iso")}, image, 0, source.Validator{})
		if got.Code != "low_speed" || got.Class != source.Temporary || !got.Head {
			t.Errorf("got %+v", got)
		}
	})
}

// TestFTPDrippingReplies: a control connection that says a little all the time, and never anything.
func TestFTPDrippingReplies(t *testing.T) {
	const limit = 300 * time.Millisecond
	for _, verb := range []string{"", "PASS", "RETR", "done"} {
		t.Run(verb, func(t *testing.T) {
			script := fetchtest.Script{Files: files, DripAt: verb, Pause: limit / 20}
			if verb == "" {
				script.DripAt = "banner"
			}
			s := fetchtest.NewFTP(t, script)
			cfg := patient()
			cfg.LowSpeedTime = limit
			got, _ := attempt(t, cfg, source.Request{URL: parse(t, s.URL+"/x.iso")}, image, 0, source.Validator{})
			want := failure(source.Temporary, "stalled", silent)
			if verb == "done" {
				want = after(64*kib, want)
			}
			wantOutcome(t, want, got)
			fetchtest.Await(t, "the end of the session", s.Next(t).Closed)
		})
	}
}

// TestFTPFloodMemory: what a server says without end is not kept.
func TestFTPFloodMemory(t *testing.T) {
	for _, verb := range []string{"PASS", "FEAT", "SIZE"} {
		s := fetchtest.NewFTP(t, fetchtest.Script{Files: files, Flood: verb})
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		got, _ := attempt(t, patient(), source.Request{URL: parse(t, s.URL+"/x.iso")}, image, 0, source.Validator{})
		runtime.ReadMemStats(&after)
		wantOutcome(t, failure(source.Permanent, "malformed_answer", malformed), got)
		if n := after.TotalAlloc - before.TotalAlloc; n > 8<<20 {
			t.Errorf("%s: %d bytes were allocated", verb, n)
		}
	}
}

// TestFTPOtherHost: the data connection goes to the control connection's peer, whatever the server says.
func TestFTPOtherHost(t *testing.T) {
	called := make(chan struct{}, 1)
	other := fetchtest.Listen(t, "127.0.0.9:0", func(net.Conn) { called <- struct{}{} })
	_, port, _ := net.SplitHostPort(other)
	n, err := net.LookupPort("tcp", port)
	if err != nil {
		t.Fatal(err)
	}
	s := fetchtest.NewFTP(t, fetchtest.Script{Files: files, Reply: map[string]string{
		"EPSV": "500 no", "PASV": "227 ok (127,0,0,9," + fetchtest.PortPair(n) + ")"}})
	got, _ := attempt(t, patient(), source.Request{URL: parse(t, s.URL+"/x.iso")}, image, 0, source.Validator{})
	if got.Class == 0 {
		t.Errorf("got %+v", got)
	}
	select {
	case <-called:
		t.Error("the other host was called")
	default:
	}
}

func TestFTPNames(t *testing.T) {
	for _, tc := range []struct {
		name, path, want string
	}{
		{"relative", "/a/b.iso", "RETR a/b.iso"},
		{"absolute", "/%2Fa/b.iso", "RETR /a/b.iso"},
		{"blank and umlaut", "/a%20b/%C3%BC.iso", "RETR a b/ü.iso"},
		{"binary", "/b.iso;type=i", "RETR b.iso"},
		{"ascii", "/b.iso;type=a", "ftp_type"},
		{"directory", "/b.iso;type=d", "ftp_type"},
		{"no file", "/", "no_file"},
		{"ends in a slash", "/a/", "no_file"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := fetchtest.NewFTP(t, fetchtest.Script{})
			_, err := client(t, patient()).Open(t.Context(), source.Request{URL: parse(t, s.URL+tc.path)}, 0, source.Validator{})
			e, ok := err.(*source.Error)
			if !ok || e.Class != source.Permanent {
				t.Fatalf("got %v", err)
			}
			got, sent := e.Code, s.Sessions()
			if len(sent) > 0 {
				fetchtest.Await(t, "the end of the session", sent[0].Closed)
				commands := sent[0].Commands()
				if !slices.Contains(commands, "TYPE I") {
					t.Errorf("not in binary: %q", commands)
				}
				got = commands[len(commands)-1]
				if got == "QUIT" || strings.HasPrefix(got, "PASV") {
					got = commands[len(commands)-2]
				}
			}
			if got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}
