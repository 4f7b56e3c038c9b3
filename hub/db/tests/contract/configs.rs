//! Configurations and who should have which.

use crate::bench::{T, all, at, id, new_agent};
use crate::contract;
use picket_hub_db::{Assignment, ConfigTarget, ConfigVersion};

fn config(comment: &str) -> ConfigVersion {
    ConfigVersion {
        version: 0,
        document: serde_json::json!({"comment": comment}),
        sha256: "ab".repeat(32),
        comment: comment.into(),
        created_at: at(1),
        created_by: "ada".into(),
    }
}

fn assigned(target: ConfigTarget, version: i64, priority: i32) -> Assignment {
    Assignment { target, version, priority, updated_at: at(2), updated_by: "ada".into() }
}

contract! {
    async fn versions_are_numbered_and_never_change(bench) {
        for number in 1..=5 {
            let made = bench.db.create_config(T, &config(&number.to_string())).await.unwrap();
            assert_eq!((made.version, &made.document), (number, &config(&number.to_string()).document));
        }
        let listed = all(2, async |page| bench.db.configs(T, &page).await).await;
        assert_eq!(listed.iter().map(|one| one.version).collect::<Vec<_>>(), [5, 4, 3, 2, 1]);
        assert_eq!(bench.db.config(T, 3).await.unwrap().unwrap(), listed[2]);
        assert_eq!(bench.db.config(T, 9).await.unwrap(), None);
    }

    async fn an_agent_gets_its_own_version_else_its_tags_else_the_one_for_all(bench) {
        let mut new = new_agent(1);
        new.tags = ["web".to_owned(), "prod".to_owned()].into();
        bench.db.create_agent(T, &new, at(0)).await.unwrap();
        for number in 1..=5 {
            bench.db.create_config(T, &config(&number.to_string())).await.unwrap();
        }
        let wanted = async || bench.db.wanted_config(T, id(1)).await.unwrap().map(|one| one.version);
        let assign = async |target, version, priority| {
            bench.db.assign_config(T, &assigned(target, version, priority)).await.unwrap();
        };
        assert_eq!(wanted().await, None);
        assign(ConfigTarget::All, 1, 0).await;
        assert_eq!(wanted().await, Some(1));
        assign(ConfigTarget::Tag("web".into()), 2, 0).await;
        assign(ConfigTarget::Tag("other".into()), 5, 99).await;
        assert_eq!(wanted().await, Some(2));
        assign(ConfigTarget::Tag("prod".into()), 3, 0).await;
        assert_eq!(wanted().await, Some(3), "of equal ones the first by name");
        assign(ConfigTarget::Tag("web".into()), 2, 1).await;
        assert_eq!(wanted().await, Some(2), "the higher one");
        assign(ConfigTarget::Agent(id(1)), 4, 0).await;
        assert_eq!(wanted().await, Some(4));
        assert_eq!(bench.db.assignments(T).await.unwrap().len(), 5);
        assert!(bench.db.unassign_config(T, &ConfigTarget::Agent(id(1))).await.unwrap());
        assert!(!bench.db.unassign_config(T, &ConfigTarget::Agent(id(1))).await.unwrap());
        assert_eq!(wanted().await, Some(2));
        let missing = bench.db.assign_config(T, &assigned(ConfigTarget::All, 9, 0)).await;
        assert!(missing.unwrap_err().is_not_found());
        assert_eq!(bench.db.wanted_config(T, id(9)).await.unwrap(), None);
    }
}
