BEGIN TRANSACTION;
CREATE TABLE accounts (
	account VARCHAR NOT NULL, 
	opened_at VARCHAR(32) NOT NULL, 
	PRIMARY KEY (account)
);
INSERT INTO "accounts" VALUES('project:demo','2026-11-21T12:00:00.000000+00:00');
CREATE TABLE buckets (
	bucket_id INTEGER NOT NULL, 
	budget VARCHAR NOT NULL, 
	account VARCHAR NOT NULL, 
	unit VARCHAR(16) NOT NULL, 
	period VARCHAR NOT NULL, 
	limit_amount BIGINT NOT NULL, 
	mode VARCHAR(16) NOT NULL, 
	alerts JSON NOT NULL, 
	spent BIGINT NOT NULL CHECK (spent >= 0), 
	held BIGINT NOT NULL CHECK (held >= 0), 
	PRIMARY KEY (bucket_id), 
	UNIQUE (budget, account, unit, period), 
	FOREIGN KEY(account) REFERENCES accounts (account)
);
INSERT INTO "buckets" VALUES(1,'month','project:demo','carbon','2026-11',60,'hard','[]',7,5);
INSERT INTO "buckets" VALUES(2,'month','project:demo','energy','2026-11',100,'hard','[{"at_ratio": 0.5, "of_committed": true, "to": ["team"]}]',62,10);
CREATE TABLE decisions (
	decision_id INTEGER NOT NULL, 
	at VARCHAR(32) NOT NULL, 
	step_key VARCHAR NOT NULL, 
	hold_id VARCHAR(64), 
	action VARCHAR(16) NOT NULL, 
	reason TEXT NOT NULL, 
	step JSON NOT NULL, 
	decision JSON NOT NULL, 
	balances JSON NOT NULL, 
	PRIMARY KEY (decision_id)
);
INSERT INTO "decisions" VALUES(1,'2026-11-21T12:00:00.000000+00:00','run1:prepare::1','b73e83f8ce7b4153ab3132a78b918695','admit','fits','{"workflow_run": "run1", "name": "prepare", "wildcards": "", "attempt": 1}','{"action": "admit", "would": "admit", "tier": "full", "amounts": {"energy": 10, "carbon": 5}, "reason": "fits", "estimate_source": "", "policy_sha256": "", "budget": null, "unit": null, "needed": null, "available": null}','[{"term": {"budget": "month", "account": "project:demo", "unit": "energy", "period": "2026-11", "limit": 100, "mode": "hard", "alerts": [{"at_ratio": 0.5, "of_committed": true, "to": ["team"]}]}, "spent": 0, "held": 0}, {"term": {"budget": "month", "account": "project:demo", "unit": "carbon", "period": "2026-11", "limit": 60, "mode": "hard", "alerts": []}, "spent": 0, "held": 0}]');
INSERT INTO "decisions" VALUES(2,'2026-11-21T12:00:00.000000+00:00','run1:train::1','f5eb7188d49b4377bd03d2b7a1811c9a','admit','fits','{"workflow_run": "run1", "name": "train", "wildcards": "", "attempt": 1}','{"action": "admit", "would": "admit", "tier": "full", "amounts": {"energy": 10, "carbon": 5}, "reason": "fits", "estimate_source": "", "policy_sha256": "", "budget": null, "unit": null, "needed": null, "available": null}','[{"term": {"budget": "month", "account": "project:demo", "unit": "energy", "period": "2026-11", "limit": 100, "mode": "hard", "alerts": [{"at_ratio": 0.5, "of_committed": true, "to": ["team"]}]}, "spent": 0, "held": 10}, {"term": {"budget": "month", "account": "project:demo", "unit": "carbon", "period": "2026-11", "limit": 60, "mode": "hard", "alerts": []}, "spent": 0, "held": 5}]');
INSERT INTO "decisions" VALUES(3,'2026-11-21T12:00:00.000000+00:00','run1:lost::1','de2a286b1a734bd88f06e57e405c9f13','admit','fits','{"workflow_run": "run1", "name": "lost", "wildcards": "", "attempt": 1}','{"action": "admit", "would": "admit", "tier": "full", "amounts": {"energy": 10, "carbon": 5}, "reason": "fits", "estimate_source": "", "policy_sha256": "", "budget": null, "unit": null, "needed": null, "available": null}','[{"term": {"budget": "month", "account": "project:demo", "unit": "energy", "period": "2026-11", "limit": 100, "mode": "hard", "alerts": [{"at_ratio": 0.5, "of_committed": true, "to": ["team"]}]}, "spent": 0, "held": 20}, {"term": {"budget": "month", "account": "project:demo", "unit": "carbon", "period": "2026-11", "limit": 60, "mode": "hard", "alerts": []}, "spent": 0, "held": 10}]');
INSERT INTO "decisions" VALUES(4,'2026-11-21T12:00:00.000000+00:00','run1:void::1','6264462f409b4d3dbccb6802e1019a65','admit','fits','{"workflow_run": "run1", "name": "void", "wildcards": "", "attempt": 1}','{"action": "admit", "would": "admit", "tier": "full", "amounts": {"energy": 10, "carbon": 5}, "reason": "fits", "estimate_source": "", "policy_sha256": "", "budget": null, "unit": null, "needed": null, "available": null}','[{"term": {"budget": "month", "account": "project:demo", "unit": "energy", "period": "2026-11", "limit": 100, "mode": "hard", "alerts": [{"at_ratio": 0.5, "of_committed": true, "to": ["team"]}]}, "spent": 0, "held": 30}, {"term": {"budget": "month", "account": "project:demo", "unit": "carbon", "period": "2026-11", "limit": 60, "mode": "hard", "alerts": []}, "spent": 0, "held": 15}]');
INSERT INTO "decisions" VALUES(5,'2026-11-21T12:00:00.000000+00:00','run1:running::1','04185769b25345ddbfbeb8d442a5d8f2','admit','fits','{"workflow_run": "run1", "name": "running", "wildcards": "", "attempt": 1}','{"action": "admit", "would": "admit", "tier": "full", "amounts": {"energy": 10, "carbon": 5}, "reason": "fits", "estimate_source": "", "policy_sha256": "", "budget": null, "unit": null, "needed": null, "available": null}','[{"term": {"budget": "month", "account": "project:demo", "unit": "energy", "period": "2026-11", "limit": 100, "mode": "hard", "alerts": [{"at_ratio": 0.5, "of_committed": true, "to": ["team"]}]}, "spent": 0, "held": 40}, {"term": {"budget": "month", "account": "project:demo", "unit": "carbon", "period": "2026-11", "limit": 60, "mode": "hard", "alerts": []}, "spent": 0, "held": 20}]');
INSERT INTO "decisions" VALUES(6,'2026-11-21T12:00:00.000000+00:00','run1:dear::1',NULL,'wait','needs 90 of 28','{"workflow_run": "run1", "name": "dear", "wildcards": "", "attempt": 1}','{"action": "wait", "would": "wait", "tier": null, "amounts": {}, "reason": "needs 90 of 28", "estimate_source": "", "policy_sha256": "", "budget": "month", "unit": "energy", "needed": 90, "available": 28}','[{"term": {"budget": "month", "account": "project:demo", "unit": "energy", "period": "2026-11", "limit": 100, "mode": "hard", "alerts": [{"at_ratio": 0.5, "of_committed": true, "to": ["team"]}]}, "spent": 62, "held": 10}, {"term": {"budget": "month", "account": "project:demo", "unit": "carbon", "period": "2026-11", "limit": 60, "mode": "hard", "alerts": []}, "spent": 7, "held": 5}]');
CREATE TABLE entries (
	entry_number INTEGER NOT NULL, 
	entry_id VARCHAR(64) NOT NULL, 
	hold_id VARCHAR(64), 
	project VARCHAR NOT NULL, 
	user VARCHAR NOT NULL, 
	workflow_run VARCHAR NOT NULL, 
	step VARCHAR NOT NULL, 
	wildcards VARCHAR NOT NULL, 
	attempt INTEGER NOT NULL, 
	host VARCHAR NOT NULL, 
	started_at VARCHAR(32) NOT NULL, 
	ended_at VARCHAR(32) NOT NULL, 
	duration_seconds FLOAT NOT NULL, 
	outcome VARCHAR(16) NOT NULL, 
	tier VARCHAR, 
	decision VARCHAR(16) NOT NULL, 
	would_decision VARCHAR(16) NOT NULL, 
	reason TEXT NOT NULL, 
	phase VARCHAR, 
	energy JSON NOT NULL, 
	energy_total_microjoules BIGINT, 
	energy_charged_microjoules BIGINT NOT NULL, 
	boundary VARCHAR(16) NOT NULL, 
	sampler_id VARCHAR, 
	cpu_seconds FLOAT, 
	cpu_clock VARCHAR(16), 
	coverage_ratio FLOAT, 
	carbon_intensity_g_per_kwh FLOAT, 
	intensity_source VARCHAR, 
	pue FLOAT NOT NULL, 
	operational_micrograms_co2e BIGINT, 
	embodied_micrograms_co2e BIGINT, 
	cost_micro_units BIGINT, 
	currency VARCHAR, 
	PRIMARY KEY (entry_number), 
	UNIQUE (entry_id)
);
INSERT INTO "entries" VALUES(1,'entry-b73e83f8ce7b4153ab3132a78b918695','b73e83f8ce7b4153ab3132a78b918695','demo','ana','run1','prepare','',1,'node1','2026-11-21T12:00:00.000000+00:00','2026-11-21T12:00:03.000000+00:00',3.0,'succeeded','full','admit','admit','','training','{"cpu": [7, 7, 8, "estimated"]}',7,7,'component','sampler1',1.5,NULL,1.0,NULL,NULL,1.0,3,NULL,NULL,NULL);
INSERT INTO "entries" VALUES(2,'entry-f5eb7188d49b4377bd03d2b7a1811c9a','f5eb7188d49b4377bd03d2b7a1811c9a','demo','ana','run1','train','',1,'node1','2026-11-21T12:00:00.000000+00:00','2026-11-21T12:00:03.000000+00:00',3.0,'succeeded','full','admit','admit','','training','{"cpu": [45, 45, 46, "estimated"]}',45,45,'component','sampler1',1.5,NULL,1.0,NULL,NULL,1.0,4,NULL,NULL,NULL);
INSERT INTO "entries" VALUES(3,'entry-de2a286b1a734bd88f06e57e405c9f13','de2a286b1a734bd88f06e57e405c9f13','demo','ana','run1','lost','',1,'node1','2026-11-21T12:00:00.000000+00:00','2026-11-21T12:00:03.000000+00:00',3.0,'lost','full','admit','admit','','training','{"cpu": [4, 4, 5, "estimated"]}',4,12,'component','sampler1',1.5,NULL,1.0,NULL,NULL,1.0,NULL,NULL,NULL,NULL);
CREATE TABLE facts (
	hold_id VARCHAR(64) NOT NULL, 
	name VARCHAR NOT NULL, 
	value JSON NOT NULL, 
	PRIMARY KEY (hold_id, name)
);
INSERT INTO "facts" VALUES('f5eb7188d49b4377bd03d2b7a1811c9a','quality/mape',0.25);
CREATE TABLE holds (
	hold_number INTEGER NOT NULL, 
	hold_id VARCHAR(64) NOT NULL, 
	step_key VARCHAR NOT NULL, 
	state VARCHAR(16) NOT NULL, 
	step JSON NOT NULL, 
	project VARCHAR NOT NULL, 
	user VARCHAR NOT NULL, 
	spec JSON NOT NULL, 
	tier VARCHAR, 
	decision VARCHAR(16) NOT NULL, 
	would_decision VARCHAR(16) NOT NULL, 
	amounts JSON NOT NULL, 
	terms JSON NOT NULL, 
	owner JSON NOT NULL, 
	opened_at VARCHAR(32) NOT NULL, 
	PRIMARY KEY (hold_number), 
	UNIQUE (hold_id), 
	UNIQUE (step_key)
);
INSERT INTO "holds" VALUES(1,'b73e83f8ce7b4153ab3132a78b918695','run1:prepare::1','settled','{"workflow_run": "run1", "name": "prepare", "wildcards": "", "attempt": 1}','demo','ana','{"tiers": [["full", 1.0]], "energy_microjoules": 5, "phase": "training", "checkpoint": null, "quality_metric": null}','full','admit','admit','{"energy": 10, "carbon": 5}','[{"budget": "month", "account": "project:demo", "unit": "energy", "period": "2026-11", "limit": 100, "mode": "hard", "alerts": [{"at_ratio": 0.5, "of_committed": true, "to": ["team"]}]}, {"budget": "month", "account": "project:demo", "unit": "carbon", "period": "2026-11", "limit": 60, "mode": "hard", "alerts": []}]','{"host": "node1", "boot_id": "boot1", "pid": 42, "started_ticks": 7, "spool_dir": null}','2026-11-21T12:00:00.000000+00:00');
INSERT INTO "holds" VALUES(2,'f5eb7188d49b4377bd03d2b7a1811c9a','run1:train::1','settled','{"workflow_run": "run1", "name": "train", "wildcards": "", "attempt": 1}','demo','ana','{"tiers": [["full", 1.0]], "energy_microjoules": 5, "phase": "training", "checkpoint": null, "quality_metric": null}','full','admit','admit','{"energy": 30, "carbon": 5}','[{"budget": "month", "account": "project:demo", "unit": "energy", "period": "2026-11", "limit": 100, "mode": "hard", "alerts": [{"at_ratio": 0.5, "of_committed": true, "to": ["team"]}]}, {"budget": "month", "account": "project:demo", "unit": "carbon", "period": "2026-11", "limit": 60, "mode": "hard", "alerts": []}]','{"host": "node1", "boot_id": "boot1", "pid": 42, "started_ticks": 7, "spool_dir": null}','2026-11-21T12:00:00.000000+00:00');
INSERT INTO "holds" VALUES(3,'de2a286b1a734bd88f06e57e405c9f13','run1:lost::1','lost','{"workflow_run": "run1", "name": "lost", "wildcards": "", "attempt": 1}','demo','ana','{"tiers": [["full", 1.0]], "energy_microjoules": 5, "phase": "training", "checkpoint": null, "quality_metric": null}','full','admit','admit','{"energy": 10, "carbon": 5}','[{"budget": "month", "account": "project:demo", "unit": "energy", "period": "2026-11", "limit": 100, "mode": "hard", "alerts": [{"at_ratio": 0.5, "of_committed": true, "to": ["team"]}]}, {"budget": "month", "account": "project:demo", "unit": "carbon", "period": "2026-11", "limit": 60, "mode": "hard", "alerts": []}]','{"host": "node1", "boot_id": "boot1", "pid": 42, "started_ticks": 7, "spool_dir": null}','2026-11-21T12:00:00.000000+00:00');
INSERT INTO "holds" VALUES(4,'6264462f409b4d3dbccb6802e1019a65','run1:void::1','void','{"workflow_run": "run1", "name": "void", "wildcards": "", "attempt": 1}','demo','ana','{"tiers": [["full", 1.0]], "energy_microjoules": 5, "phase": "training", "checkpoint": null, "quality_metric": null}','full','admit','admit','{"energy": 10, "carbon": 5}','[{"budget": "month", "account": "project:demo", "unit": "energy", "period": "2026-11", "limit": 100, "mode": "hard", "alerts": [{"at_ratio": 0.5, "of_committed": true, "to": ["team"]}]}, {"budget": "month", "account": "project:demo", "unit": "carbon", "period": "2026-11", "limit": 60, "mode": "hard", "alerts": []}]','{"host": "node1", "boot_id": "boot1", "pid": 42, "started_ticks": 7, "spool_dir": null}','2026-11-21T12:00:00.000000+00:00');
INSERT INTO "holds" VALUES(5,'04185769b25345ddbfbeb8d442a5d8f2','run1:running::1','held','{"workflow_run": "run1", "name": "running", "wildcards": "", "attempt": 1}','demo','ana','{"tiers": [["full", 1.0]], "energy_microjoules": 5, "phase": "training", "checkpoint": null, "quality_metric": null}','full','admit','admit','{"energy": 10, "carbon": 5}','[{"budget": "month", "account": "project:demo", "unit": "energy", "period": "2026-11", "limit": 100, "mode": "hard", "alerts": [{"at_ratio": 0.5, "of_committed": true, "to": ["team"]}]}, {"budget": "month", "account": "project:demo", "unit": "carbon", "period": "2026-11", "limit": 60, "mode": "hard", "alerts": []}]','{"host": "node1", "boot_id": "boot1", "pid": 42, "started_ticks": 7, "spool_dir": null}','2026-11-21T12:00:00.000000+00:00');
CREATE TABLE journal (
	journal_id INTEGER NOT NULL, 
	at VARCHAR(32) NOT NULL, 
	hold_id VARCHAR(64), 
	bucket_id INTEGER NOT NULL, 
	kind VARCHAR(16) NOT NULL, 
	delta_held BIGINT NOT NULL, 
	delta_spent BIGINT NOT NULL, 
	reason TEXT NOT NULL, 
	PRIMARY KEY (journal_id), 
	FOREIGN KEY(bucket_id) REFERENCES buckets (bucket_id)
);
INSERT INTO "journal" VALUES(1,'2026-11-21T12:00:00.000000+00:00','b73e83f8ce7b4153ab3132a78b918695',2,'hold',10,0,'fits');
INSERT INTO "journal" VALUES(2,'2026-11-21T12:00:00.000000+00:00','b73e83f8ce7b4153ab3132a78b918695',1,'hold',5,0,'fits');
INSERT INTO "journal" VALUES(3,'2026-11-21T12:00:00.000000+00:00','f5eb7188d49b4377bd03d2b7a1811c9a',2,'hold',10,0,'fits');
INSERT INTO "journal" VALUES(4,'2026-11-21T12:00:00.000000+00:00','f5eb7188d49b4377bd03d2b7a1811c9a',1,'hold',5,0,'fits');
INSERT INTO "journal" VALUES(5,'2026-11-21T12:00:00.000000+00:00','de2a286b1a734bd88f06e57e405c9f13',2,'hold',10,0,'fits');
INSERT INTO "journal" VALUES(6,'2026-11-21T12:00:00.000000+00:00','de2a286b1a734bd88f06e57e405c9f13',1,'hold',5,0,'fits');
INSERT INTO "journal" VALUES(7,'2026-11-21T12:00:00.000000+00:00','6264462f409b4d3dbccb6802e1019a65',2,'hold',10,0,'fits');
INSERT INTO "journal" VALUES(8,'2026-11-21T12:00:00.000000+00:00','6264462f409b4d3dbccb6802e1019a65',1,'hold',5,0,'fits');
INSERT INTO "journal" VALUES(9,'2026-11-21T12:00:00.000000+00:00','04185769b25345ddbfbeb8d442a5d8f2',2,'hold',10,0,'fits');
INSERT INTO "journal" VALUES(10,'2026-11-21T12:00:00.000000+00:00','04185769b25345ddbfbeb8d442a5d8f2',1,'hold',5,0,'fits');
INSERT INTO "journal" VALUES(11,'2026-11-21T12:00:00.000000+00:00','f5eb7188d49b4377bd03d2b7a1811c9a',2,'top_up',20,0,'');
INSERT INTO "journal" VALUES(12,'2026-11-21T12:00:00.000000+00:00','b73e83f8ce7b4153ab3132a78b918695',2,'settle',-10,7,'');
INSERT INTO "journal" VALUES(13,'2026-11-21T12:00:00.000000+00:00','b73e83f8ce7b4153ab3132a78b918695',1,'settle',-5,3,'');
INSERT INTO "journal" VALUES(14,'2026-11-21T12:00:00.000000+00:00','f5eb7188d49b4377bd03d2b7a1811c9a',2,'settle',-30,45,'');
INSERT INTO "journal" VALUES(15,'2026-11-21T12:00:00.000000+00:00','f5eb7188d49b4377bd03d2b7a1811c9a',1,'settle',-5,4,'');
INSERT INTO "journal" VALUES(16,'2026-11-21T12:00:00.000000+00:00','de2a286b1a734bd88f06e57e405c9f13',2,'lost',-10,12,'owner is gone');
INSERT INTO "journal" VALUES(17,'2026-11-21T12:00:00.000000+00:00','de2a286b1a734bd88f06e57e405c9f13',1,'lost',-5,0,'owner is gone');
INSERT INTO "journal" VALUES(18,'2026-11-21T12:00:00.000000+00:00','6264462f409b4d3dbccb6802e1019a65',2,'void',-10,0,'not used');
INSERT INTO "journal" VALUES(19,'2026-11-21T12:00:00.000000+00:00','6264462f409b4d3dbccb6802e1019a65',1,'void',-5,0,'not used');
INSERT INTO "journal" VALUES(20,'2026-11-21T12:00:00.000000+00:00','de2a286b1a734bd88f06e57e405c9f13',2,'adjust',0,-2,'its readings were found');
CREATE TABLE meta (
	meta_id INTEGER NOT NULL CHECK (meta_id = 1), 
	schema_version INTEGER NOT NULL, 
	generation BIGINT NOT NULL, 
	host VARCHAR, 
	boot_id VARCHAR, 
	PRIMARY KEY (meta_id)
);
INSERT INTO "meta" VALUES(1,1,4,'node1','boot1');
CREATE TABLE node_windows (
	window_number INTEGER NOT NULL, 
	sampler_id VARCHAR NOT NULL, 
	host VARCHAR NOT NULL, 
	boot_id VARCHAR NOT NULL, 
	domain VARCHAR(16) NOT NULL, 
	sequence_first BIGINT NOT NULL, 
	sequence_last BIGINT NOT NULL, 
	started_at VARCHAR(32) NOT NULL, 
	ended_at VARCHAR(32) NOT NULL, 
	energy_microjoules BIGINT NOT NULL, 
	energy_low_microjoules BIGINT NOT NULL, 
	energy_high_microjoules BIGINT NOT NULL, 
	method VARCHAR(16) NOT NULL, 
	attributed_microjoules BIGINT NOT NULL, 
	idle_microjoules BIGINT NOT NULL, 
	other_microjoules BIGINT NOT NULL, 
	coverage_ratio FLOAT NOT NULL, 
	PRIMARY KEY (window_number), 
	UNIQUE (sampler_id, domain, sequence_first)
);
INSERT INTO "node_windows" VALUES(1,'sampler1','node1','boot1','cpu',1,1,'2026-11-21T12:00:00.000000+00:00','2026-11-21T12:00:01.000000+00:00',37,37,38,'estimated',7,20,10,1.0);
INSERT INTO "node_windows" VALUES(2,'sampler1','node1','boot1','cpu',2,2,'2026-11-21T12:00:00.000000+00:00','2026-11-21T12:00:01.000000+00:00',75,75,76,'estimated',45,20,10,1.0);
CREATE TABLE outbox (
	outbox_id INTEGER NOT NULL, 
	dedup VARCHAR NOT NULL, 
	kind VARCHAR(16) NOT NULL, 
	payload JSON NOT NULL, 
	state VARCHAR(16) NOT NULL, 
	next_try VARCHAR(32) NOT NULL, 
	tries INTEGER NOT NULL, 
	error TEXT, 
	PRIMARY KEY (outbox_id), 
	UNIQUE (dedup)
);
INSERT INTO "outbox" VALUES(1,'month|project:demo|energy|2026-11|0.5|committed','alert','{"budget": "month", "account": "project:demo", "unit": "energy", "period": "2026-11", "at_ratio": 0.5, "of": "committed", "amount": 50, "limit": 100, "to": ["team"], "text": "budget month (project:demo, 2026-11): 0.000014 mWh of 0.000028 mWh energy committed, past 50%"}','delivered','2026-11-21T12:00:00.000000+00:00',0,NULL);
INSERT INTO "outbox" VALUES(2,'entry:entry-b73e83f8ce7b4153ab3132a78b918695','mlflow','{"entry_id": "entry-b73e83f8ce7b4153ab3132a78b918695"}','pending','2026-11-21T12:00:00.000000+00:00',0,NULL);
INSERT INTO "outbox" VALUES(3,'entry:entry-f5eb7188d49b4377bd03d2b7a1811c9a','mlflow','{"entry_id": "entry-f5eb7188d49b4377bd03d2b7a1811c9a"}','pending','2026-11-21T12:00:00.000000+00:00',0,NULL);
INSERT INTO "outbox" VALUES(4,'entry:entry-de2a286b1a734bd88f06e57e405c9f13','mlflow','{"entry_id": "entry-de2a286b1a734bd88f06e57e405c9f13"}','pending','2026-11-21T12:00:00.000000+00:00',0,NULL);
INSERT INTO "outbox" VALUES(5,'crossing','alert','{"text": "half is spent"}','pending','2026-11-21T12:00:00.000000+00:00',0,NULL);
CREATE INDEX holds_by_state ON holds (state);
CREATE INDEX entries_by_hold ON entries (hold_id);
CREATE INDEX entries_by_step ON entries (project, step, entry_number);
CREATE INDEX entries_by_workflow_run ON entries (workflow_run);
CREATE INDEX decisions_by_step_key ON decisions (step_key, decision_id);
CREATE INDEX outbox_by_state ON outbox (state, kind, outbox_id);
CREATE INDEX journal_by_hold ON journal (hold_id);
CREATE TRIGGER journal_never_update BEFORE UPDATE ON journal BEGIN SELECT RAISE(ABORT, 'the journal only grows: correct it with a new row'); END;
CREATE TRIGGER journal_never_delete BEFORE DELETE ON journal BEGIN SELECT RAISE(ABORT, 'the journal only grows: correct it with a new row'); END;
COMMIT;
